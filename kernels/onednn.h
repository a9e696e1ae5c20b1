/* onednn.h - matrix products through oneDNN: of float32, and of bfloat16 on CPUs whose instructions
 * multiply it (AVX512-BF16, AMX). All functions local. */
#ifndef MM_ONEDNN_H
#define MM_ONEDNN_H

#include "kernels/device.h"
#include "kernels/tensor.h"

/* c [rows, cols] = a · b  (+ bias [cols], of a's type, where not NULL) (+ c if accumulate). An
 * operand that is `transposed` is stored so: a as [depth, rows], b as [cols, depth]. a and b are of
 * one type, c of that or float32. */
struct mm_product {
    struct mm_mat a, b, c;
    bool a_transposed, b_transposed;
    const void *bias;
    bool accumulate;
};

/* What a device of the CPU keeps: products prepared for their shapes, room for them, and held
 * weights in oneDNN's own layout. The memory of room and weights is the device's, and counted in
 * own_bytes; of a dry device it is counted and not taken. pack: keep held weights in that layout.
 * The caller frees with mm_onednn_free. */
struct mm_onednn *mm_onednn_create(struct mm_device *dev, bool pack);
void mm_onednn_free(struct mm_onednn *onednn);

/* Whether this processor multiplies bfloat16; whether it does so in tiles (AMX), so fast that
 * bringing weights into oneDNN's layout takes longer than the product. */
bool mm_onednn_multiplies(void);
bool mm_onednn_has_tiles(void);

/* Does a product and returns true, or returns false where the operands are bfloat16 and the
 * processor does not multiply them. Sums are in float32; their order depends on the shapes and the
 * number of threads. For a dry device nothing is done. */
bool mm_onednn_product(struct mm_onednn *onednn, const struct mm_product *product);

/* The weights w don't change until let go: a packed copy for each product with w and each with its
 * transpose may be kept, of w's size each. Holding w again changes nothing. */
void mm_onednn_hold(struct mm_onednn *onednn, struct mm_mat w);
/* No weights are held any more. */
void mm_onednn_let_go(struct mm_onednn *onednn);

/* "2.6.3, for float32 and, with AVX512-BF16, bfloat16"; the caller frees with mm_free. */
char *mm_onednn_text(void);

#endif
