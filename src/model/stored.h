/* stored.h - the model that config.json describes, held against what its files hold. All local. */
#ifndef MM_STORED_H
#define MM_STORED_H

#include "io/weights.h"
#include "src/model/arch.h"

/* Says what `folder`, the value of model.path, is if it is no model folder: an identifier of the
 * hub, a path with '~', a file, a folder of the hub's cache, an adapter. MM_BAD_INPUT names it and
 * what to write instead. */
enum mm_status mm_stored_check_folder(const char *folder, struct mm_error *err);

/* Finds every tensor of the model in `weights` as transformers does and checks its shape: names may
 * lack the prefix ("model.", "gpt_neox.") or stand under the other name of the head, and of a tied
 * pair one is enough. A tied pair that is stored twice with different values is not tied:
 * arch->tied becomes false. That and tensors that the model does not use are warned about, on rank
 * 0. MM_BAD_INPUT as mm_weights_load says, and two tensors that mean the same. */
enum mm_status mm_stored_match(struct mm_arch *arch, struct mm_weights *weights,
                               struct mm_device *dev, struct mm_error *err);

#endif
