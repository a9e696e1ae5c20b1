/* loss.h - the head and the losses on it, a chunk of rows at a time.
 *
 * The logits of all tokens never exist at once. Several losses can be taken from one set of logits:
 * cross-entropy and the unlearning loss of a `listing` loop read the same forward. All functions
 * are local. */
#ifndef MM_LOSS_H
#define MM_LOSS_H

#include "io/dataset.h"
#include "src/model/transformer.h"

struct mm_head {
    size_t rows;                 /* of a chunk */
    struct mm_mat logits, spare; /* [rows, V]; spare only where two losses are taken at once */
    float *losses, *weights;     /* [capacity], device: by position */
    float *sequences;            /* [capacity], device: by sequence */
};

enum mm_head_kind { MM_ONE_LOSS, MM_TWO_LOSSES }; /* at once, at most */
void mm_head_create(struct mm_head *head, struct mm_arena *arena, const struct mm_model *model,
                    size_t capacity, enum mm_head_kind kind);

/* One loss on the hidden states of a micro-batch. */
struct mm_loss_term {
    enum mm_loss_fn fn;
    double clip_at, beta, gamma;
    const float *reference; /* [n], device: the frozen model's cross-entropy terms, of NPO */
    double positions;       /* over which the loss is a mean, of all ranks: mm_loss_positions */
    double *sum;            /* device; += this micro-batch's share of the mean loss */
    struct mm_mat dhidden;  /* [n, C] = gradient of that share; data NULL: not wanted */
};

/* Takes terms_n (1 or 2; a loss of sequences is alone, or after cross-entropy) losses of acts' last
 * forward. targets [B·T], device: each position's next token, or MM_NO_TARGET, MM_NO_TOKEN. dhead
 * [V, C], float32, receives the head's own gradient by terms[0]; NULL: not wanted. */
void mm_head_losses(const struct mm_model *model, struct mm_head *head, const struct mm_acts *acts,
                    const uint32_t *targets, const struct mm_loss_term *terms, size_t terms_n,
                    float *dhead, enum mm_into into);

/* terms [n], device (=) the cross-entropy of each position of acts' last forward, 0 where there is
 * no target. */
void mm_head_terms(const struct mm_model *model, struct mm_head *head, const struct mm_acts *acts,
                   const uint32_t *targets, float *terms);

/* terms [n], device (=) what the last mm_head_losses of acts took of each position, of its last
 * loss.
 */
void mm_head_keep(const struct mm_model *model, const struct mm_head *head,
                  const struct mm_acts *acts, float *terms);

/* Calls `see` with the logits [rows, V], device, of acts' last forward, a chunk of rows at a time;
 * row: `first` + that of acts which the chunk begins with. They are there until it returns. */
typedef void mm_see_logits(void *self, size_t row, struct mm_mat logits);
void mm_head_logits(const struct mm_model *model, struct mm_head *head, const struct mm_acts *acts,
                    size_t first, mm_see_logits *see, void *self);

/* Whether it is a loss on logits; the others are on hidden states (src/parallel/hidden_loss.h), and
 * MM_LOSS_NONE is none. */
bool mm_loss_on_logits(enum mm_loss_fn fn);

/* What the loss of a batch is a mean over: its targets, all tokens for entropy, or the sequences
 * themselves. */
double mm_loss_positions(enum mm_loss_fn fn, struct mm_counts counts);

#endif
