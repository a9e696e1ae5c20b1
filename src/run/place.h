/* place.h - where a command computes: on the CPU or on a GPU a rank, and in which arithmetic.
 *
 * The config says what is wanted; here it meets what there is. */
#ifndef MM_PLACE_H
#define MM_PLACE_H

#include "src/config/config.h"

/* Creates this rank's device by config->device, settles its threads, attaches comm to it, says what
 * came of it (on the CPU as debug only), and sets config->model.dtype where it is auto. cuda: GPU
 * local rank modulo those visible; auto: that where every rank has a usable GPU, else the CPU.
 * MM_BAD_INPUT: there is no GPU where the config needs one, or the transport cannot be had.
 * resumed: a run that was begun; it keeps its arithmetic. *dev, also after a failure: NULL, or
 * freed by the caller with mm_device_free after mm_comm_free. Collective. */
enum mm_status mm_place_open(struct mm_device **dev, struct mm_comm *comm, struct mm_config *config,
                             bool resumed, struct mm_error *err);

/* Whether `plan` counts for GPUs, without asking anything of one but whether it is there; sets
 * config->model.dtype where it is auto. device: cuda plans for a GPU wherever it is asked; auto
 * does where one is visible or the arithmetic is bfloat16. Local. */
bool mm_place_plan(struct mm_config *config);

#endif
