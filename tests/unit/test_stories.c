/* test_stories.c - a real pre-trained model: logits, loss and greedy text of stories260K against
 * the reference beside it. Skipped (77) where the data is not: MUDMAN_TEST_DATA, default
 * ../shared/data. */
#include "tests/golden/trace.h"
#include "tests/unit/whole_model.h"

#include "io/files.h"
#include "src/model/loss.h"

#include <cjson/cJSON.h>

#define CONTEXT 256

static struct {
    struct mm_device *dev;
    struct mm_arena *arena;
    struct mm_model *model;
    struct mm_acts acts;
    struct mm_scratch scratch;
    struct mm_mat logits;
    cJSON *reference;
    char *folder;
} fixture;

static int open_model(void **state) {
    (void)state;
    struct mm_error err = {""};
    struct mm_arch arch;
    struct mm_weights *weights = NULL;
    char *config = mm_format("%s/config.json", fixture.folder), *text = NULL;
    char *reference = mm_format("%s/reference.json", fixture.folder);
    fixture.dev = mm_device_create_cpu();
    fixture.arena = mm_arena_create(fixture.dev);
    if (mm_arch_read(&arch, config, &err) || mm_weights_open(&weights, fixture.folder, &err) ||
        mm_file_read(reference, &text, NULL, &err))
        fail_msg("%s", err.text);
    fixture.reference = cJSON_Parse(text);
    fixture.model = mm_model_create(fixture.arena, &arch, MM_F32, CONTEXT);
    if (load_whole(fixture.model, weights, &err))
        fail_msg("%s", err.text);
    mm_acts_create(&fixture.acts, fixture.arena, fixture.model, CONTEXT, NULL, MM_KEEP_ALL);
    mm_scratch_create(&fixture.scratch, fixture.arena, fixture.model, CONTEXT, MM_FORWARD_ONLY);
    fixture.logits = mm_arena_mat(fixture.arena, MM_FOR_SCRATCH, MM_F32, CONTEXT, arch.vocab);
    mm_weights_free(weights);
    mm_free(config);
    mm_free(reference);
    mm_free(text);
    return 0;
}

static int close_model(void **state) {
    (void)state;
    cJSON_Delete(fixture.reference);
    mm_acts_free(&fixture.acts);
    mm_model_free(fixture.model);
    mm_arena_free(fixture.arena);
    mm_device_free(fixture.dev);
    return 0;
}

/* An array of numbers of the reference, as tokens. */
static size_t ids(const char *key, uint32_t *tokens) {
    const cJSON *array = cJSON_GetObjectItem(fixture.reference, key), *id;
    size_t n = 0;
    cJSON_ArrayForEach(id, array) tokens[n++] = (uint32_t)id->valueint;
    assert_true(n > 0 && n <= CONTEXT);
    return n;
}

/* Logits of every position of one sequence. */
static const float *logits_of(const uint32_t *tokens, size_t n) {
    struct mm_layer_hook none = {0};
    mm_forward(fixture.model, &fixture.acts, &fixture.scratch, tokens, 1, n, none);
    fixture.dev->ops->linear(fixture.dev, mm_mat_rows(fixture.logits, 0, n),
                             mm_mat_rows(fixture.acts.hidden, 0, n),
                             fixture.model->params[fixture.model->head_part].w, NULL, MM_SET);
    return fixture.logits.data;
}

static void prompt_logits_and_loss(void **state) {
    (void)state;
    uint32_t tokens[CONTEXT];
    size_t n = ids("prompt_ids", tokens), V = fixture.model->arch.vocab, j = 0;
    const float *last = logits_of(tokens, n) + (n - 1) * V;
    const cJSON *want;
    cJSON_ArrayForEach(want, cJSON_GetObjectItem(fixture.reference, "last_logits")) {
        trace_near("stories260K", "logit", j, (double)last[j], want->valuedouble, 2e-5);
        j++;
    }
    assert_int_equal(j, V);
    struct mm_head head;
    double loss = 0;
    struct mm_loss_term term = {
        .fn = MM_LOSS_CROSS_ENTROPY, .positions = (double)n - 1, .sum = &loss};
    mm_head_create(&head, fixture.arena, fixture.model, CONTEXT, MM_ONE_LOSS);
    for (size_t i = 0; i < n; i++)
        tokens[i] = i + 1 < n ? tokens[i + 1] : UINT32_MAX; /* the targets */
    mm_head_losses(fixture.model, &head, &fixture.acts, tokens, &term, 1, NULL, MM_ADD);
    trace_near("stories260K", "loss", 0, loss,
               cJSON_GetObjectItem(fixture.reference, "mean_nll_prompt")->valuedouble, 1e-6);
}

static void greedy_text(void **state) {
    (void)state;
    uint32_t want[CONTEXT], tokens[CONTEXT] = {1}; /* <s> */
    size_t n = ids("greedy_from_bos_ids", want), V = fixture.model->arch.vocab;
    size_t given = want[0] == 1; /* whether the reference repeats the start */
    for (size_t i = 1; i + given <= n; i++) {
        const float *row = logits_of(tokens, i) + (i - 1) * V;
        uint32_t best = 0;
        for (uint32_t v = 1; v < V; v++)
            best = row[v] > row[best] ? v : best;
        assert_int_equal(best, want[i - 1 + given]);
        tokens[i < CONTEXT ? i : CONTEXT - 1] = best;
    }
}

int main(void) {
    const char *data = getenv("MUDMAN_TEST_DATA");
    fixture.folder = data ? mm_format("%s/models/stories260K", data)
                          : mm_format("%s/../../shared/data/models/stories260K", TEST_DIR);
    if (!mm_path_exists(fixture.folder)) {
        printf("skipped: no %s\n", fixture.folder);
        return 77;
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(prompt_logits_and_loss),
        cmocka_unit_test(greedy_text),
    };
    int failed = cmocka_run_group_tests(tests, open_model, close_model);
    mm_free(fixture.folder);
    return failed;
}
