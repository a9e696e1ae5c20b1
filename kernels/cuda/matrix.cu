/* matrix.cu - matrix products: cuBLASLt on row-major matrices.
 *
 * cuBLASLt's matrices are column-major and ours are row-major. So c = a·b here is cᵀ = bᵀ·aᵀ there,
 * and a row-major matrix, read as column-major, is its own transpose. Sums are float32 and never
 * TF32. The algorithm of a product is the first that the library's heuristic names. It depends only
 * on what is in its key, is asked for once and kept, and reduces split sums in float32 and in a
 * fixed order. So a run repeats bit by bit, and a captured graph never contains the search. */
#include "kernels/cuda/cuda.h"

#define CUBLAS(call, p)                                                                            \
    do {                                                                                           \
        cublasStatus_t cublas_result = (call);                                                     \
        MM_CHECK(cublas_result == CUBLAS_STATUS_SUCCESS, "cuBLASLt: %s, product " PRODUCT_FORMAT,  \
                 cublasLtGetStatusString(cublas_result), PRODUCT_VALUES(p));                       \
    } while (0)
#define PRODUCT_FORMAT "[%zu, %zu]%s · [%zu, %zu]%s of %s -> [%zu, %zu] of %s%s"
#define PRODUCT_VALUES(p)                                                                          \
    (p).a.rows, (p).a.cols, (p).a_turned ? "ᵀ" : "", (p).b.rows, (p).b.cols,                       \
        (p).b_turned ? "ᵀ" : "", mm_dtype_name((p).a.dtype), (p).c.rows, (p).c.cols,               \
        mm_dtype_name((p).c.dtype), (p).bias ? ", with bias" : ""

/* c = a · b (+ c) (+ bias of each column), a and b as they are or turned. */
struct product {
    struct mm_mat c, a, b;
    bool a_turned, b_turned, accumulate;
    const void *bias;
};

/* All that the choice of an algorithm may depend on. */
struct product_key {
    uint64_t sizes[3], lds[3], alignments[4], types[2], turned[2];
};

#define MOST_CHOICES 1024u /* a power of 2 */
struct cuda_choices {
    size_t n;
    struct {
        struct product_key key;
        bool used;
        cublasLtMatmulAlgo_t algorithm;
    } slots[MOST_CHOICES];
};

/* What cuBLASLt wants to be told. */
struct description {
    cublasLtMatmulDescOpaque_t operation;
    cublasLtMatrixLayoutOpaque_t a, b, c;
};

/* The largest power of 2 that divides the address, up to what any algorithm asks for. */
static uint64_t alignment(const void *data) {
    uintptr_t bits = reinterpret_cast<uintptr_t>(data) | 256;
    return bits & (~bits + 1);
}

static struct product_key key_of(const struct product &p) {
    return {{p.c.rows, p.c.cols, p.a_turned ? p.a.rows : p.a.cols},
            {p.a.ld, p.b.ld, p.c.ld},
            {alignment(p.a.data), alignment(p.b.data), alignment(p.c.data),
             p.bias ? alignment(p.bias) : 0},
            {static_cast<uint64_t>(p.a.dtype), static_cast<uint64_t>(p.c.dtype)},
            {p.a_turned, p.b_turned}};
}

static cudaDataType_t type_of(struct mm_mat m) {
    MM_CHECK(m.dtype == MM_F32 || m.dtype == MM_BF16, "a product of %s", mm_dtype_name(m.dtype));
    return m.dtype == MM_BF16 ? CUDA_R_16BF : CUDA_R_32F;
}

static struct description describe(const struct product &p) {
    struct description d;
    cublasOperation_t left = p.b_turned ? CUBLAS_OP_T : CUBLAS_OP_N;
    cublasOperation_t right = p.a_turned ? CUBLAS_OP_T : CUBLAS_OP_N;
    CUBLAS(cublasLtMatmulDescInit(&d.operation, CUBLAS_COMPUTE_32F, CUDA_R_32F), p);
    CUBLAS(cublasLtMatmulDescSetAttribute(&d.operation, CUBLASLT_MATMUL_DESC_TRANSA, &left,
                                          sizeof left),
           p);
    CUBLAS(cublasLtMatmulDescSetAttribute(&d.operation, CUBLASLT_MATMUL_DESC_TRANSB, &right,
                                          sizeof right),
           p);
    if (p.bias) {
        cublasLtEpilogue_t epilogue = CUBLASLT_EPILOGUE_BIAS;
        CUBLAS(cublasLtMatmulDescSetAttribute(&d.operation, CUBLASLT_MATMUL_DESC_EPILOGUE,
                                              &epilogue, sizeof epilogue),
               p);
        CUBLAS(cublasLtMatmulDescSetAttribute(&d.operation, CUBLASLT_MATMUL_DESC_BIAS_POINTER,
                                              &p.bias, sizeof p.bias),
               p);
    }
    CUBLAS(cublasLtMatrixLayoutInit(&d.a, type_of(p.b), p.b.cols, p.b.rows,
                                    static_cast<int64_t>(p.b.ld)),
           p);
    CUBLAS(cublasLtMatrixLayoutInit(&d.b, type_of(p.a), p.a.cols, p.a.rows,
                                    static_cast<int64_t>(p.a.ld)),
           p);
    CUBLAS(cublasLtMatrixLayoutInit(&d.c, type_of(p.c), p.c.cols, p.c.rows,
                                    static_cast<int64_t>(p.c.ld)),
           p);
    return d;
}

static cublasLtMatmulAlgo_t choose(const struct cuda_context *context, const struct product &p,
                                   struct description &d) {
    cublasLtMatmulPreferenceOpaque_t preference;
    CUBLAS(cublasLtMatmulPreferenceInit(&preference), p);
    uint32_t reductions = CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;
    uint32_t a = static_cast<uint32_t>(alignment(p.b.data));
    uint32_t b = static_cast<uint32_t>(alignment(p.a.data));
    uint32_t c = static_cast<uint32_t>(alignment(p.c.data));
    const struct {
        cublasLtMatmulPreferenceAttributes_t name;
        const void *value;
        size_t bytes;
    } wishes[] = {
        {CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &context->workspace_bytes, sizeof(size_t)},
        {CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &reductions, sizeof reductions},
        {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, &a, sizeof a},
        {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, &b, sizeof b},
        {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, &c, sizeof c},
        {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, &c, sizeof c},
    };
    for (const auto &wish : wishes)
        CUBLAS(cublasLtMatmulPreferenceSetAttribute(&preference, wish.name, wish.value, wish.bytes),
               p);
    cublasLtMatmulHeuristicResult_t found;
    int found_n = 0;
    CUBLAS(cublasLtMatmulAlgoGetHeuristic(context->lt, &d.operation, &d.a, &d.b, &d.c, &d.c,
                                          &preference, 1, &found, &found_n),
           p);
    MM_CHECK(found_n == 1 && found.state == CUBLAS_STATUS_SUCCESS,
             "cuBLASLt knows no way for " PRODUCT_FORMAT, PRODUCT_VALUES(p));
    return found.algo;
}

static uint64_t hash(const struct product_key &key) {
    uint64_t words[sizeof key / 8], h = 0;
    memcpy(words, &key, sizeof key);
    for (uint64_t word : words)
        h = (h ^ word) * 0x9e3779b97f4a7c15u ^ h >> 29;
    return h >> 32;
}

static const cublasLtMatmulAlgo_t *algorithm(struct cuda_context *context, const struct product &p,
                                             struct description &d) {
    if (!context->choices)
        context->choices =
            static_cast<struct cuda_choices *>(mm_calloc(1, sizeof *context->choices));
    struct cuda_choices *all = context->choices;
    struct product_key key = key_of(p);
    if (all->n > MOST_CHOICES / 2) /* they will be chosen again, and the same */
        memset(all, 0, sizeof *all);
    auto *slot = &all->slots[0];
    for (uint64_t i = hash(key);; i++) {
        slot = &all->slots[i % MOST_CHOICES];
        if (!slot->used || memcmp(&slot->key, &key, sizeof key) == 0)
            break;
    }
    if (!slot->used) {
        slot->algorithm = choose(context, p, d);
        slot->key = key;
        slot->used = true;
        all->n++;
    }
    return &slot->algorithm;
}

static void multiply(struct mm_device *dev, const struct product &p) {
    size_t k = p.a_turned ? p.a.rows : p.a.cols;
    MM_CHECK((p.a_turned ? p.a.cols : p.a.rows) == p.c.rows &&
                 (p.b_turned ? p.b.rows : p.b.cols) == p.c.cols &&
                 (p.b_turned ? p.b.cols : p.b.rows) == k && p.a.dtype == p.b.dtype,
             "shapes or types don't match: " PRODUCT_FORMAT, PRODUCT_VALUES(p));
    if (p.c.rows == 0 || p.c.cols == 0 || k == 0) {
        MM_CHECK(k > 0 || p.accumulate, "an empty sum");
        return;
    }
    struct cuda_context *context = cuda_context(dev);
    struct description d = describe(p);
    const float one = 1.0f, beta = p.accumulate ? 1.0f : 0.0f;
    CUBLAS(cublasLtMatmul(context->lt, &d.operation, &one, p.b.data, &d.a, p.a.data, &d.b, &beta,
                          p.c.data, &d.c, p.c.data, &d.c, algorithm(context, p, d),
                          context->workspace, context->workspace_bytes, context->stream),
           p);
}

void cuda_linear(struct mm_device *dev, struct mm_mat y, struct mm_mat x, struct mm_mat w,
                 const void *bias, enum mm_into into) {
    multiply(dev, {y, x, w, false, true, into == MM_ADD, bias});
}

void cuda_linear_dx(struct mm_device *dev, struct mm_mat dx, struct mm_mat dy, struct mm_mat w,
                    enum mm_into into) {
    multiply(dev, {dx, dy, w, false, false, into == MM_ADD, nullptr});
}

void cuda_linear_dw(struct mm_device *dev, struct mm_mat dw, struct mm_mat dy, struct mm_mat x,
                    enum mm_into into) {
    multiply(dev, {dw, dy, x, true, false, into == MM_ADD, nullptr});
}
