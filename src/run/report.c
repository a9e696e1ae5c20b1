/* report.c - what a job says of itself: evaluations, scores, the last line and the summary; see
 * report.h. */
#include "src/run/report.h"

#include "src/run/standing.h"

#include <math.h>
#include <stdio.h>

void mm_report_moment(const struct mm_job *job, struct mm_metrics *to, const char *at,
                      size_t passes) {
    mm_metrics_text(to, "at", at);
    if (job->phase.attack)
        mm_metrics_text(to, "attack", job->phase.attack);
    mm_metrics_count(to, "passes", passes);
}

void mm_report_evaluation(const struct mm_job *job, struct mm_metrics *to,
                          const struct mm_evaluation *e) {
    mm_metrics_number(to, "forget_loss", e->forget_loss);
    mm_metrics_number(to, "retain_loss", e->retain_loss);
    mm_metrics_number(to, "forget_answer_probability", e->forget_answer_probability);
    if (job->config->evaluate.kl.file)
        mm_metrics_number(to, "kl", e->kl);
    for (size_t i = 0; i < job->data.questions_n; i++) {
        char key[128];
        snprintf(key, sizeof key, "accuracy_%s", job->config->evaluate.multiple_choice[i].name);
        mm_metrics_number(to, key, e->accuracy[i]);
    }
}

static enum mm_status write_evaluation(struct mm_job *job, const char *at, size_t passes,
                                       const struct mm_evaluation *e, struct mm_error *err) {
    mm_metrics_begin(job->metrics, "eval");
    mm_report_moment(job, job->metrics, at, passes);
    mm_report_evaluation(job, job->metrics, e);
    return mm_metrics_end(job->metrics, err);
}

enum mm_status mm_report_evaluate(struct mm_job *job, const char *at, size_t passes,
                                  struct mm_evaluation *out, struct mm_error *err) {
    enum mm_status status = MM_OK;
    mm_job_watch(job, "evaluation after pass", passes);
    mm_evaluate(job->evaluator, out);
    if (job->metrics)
        status = write_evaluation(job, at, passes, out, err);
    mm_log0(MM_LOG_DEBUG, "eval at %s, %zu passes: forget %.4f retain %.4f", at, passes,
            out->forget_loss, out->retain_loss);
    status = mm_comm_agree(job->comm, status, err);
    if (status == MM_OK && job->listener.evaluated)
        status = job->listener.evaluated(job->listener.self, at, passes, out, err);
    return status;
}

/* The largest resident size of this very program; getrusage would count what the process held
 * before exec, as a child of its launcher. */
static double peak_resident_bytes(void) {
    FILE *file = fopen("/proc/self/status", "r");
    char line[256];
    double kilobytes = NAN;
    while (file && fgets(line, sizeof line, file))
        if (sscanf(line, "VmHWM: %lf", &kilobytes) == 1)
            break;
    if (file)
        fclose(file);
    return kilobytes * 1024;
}

/* The most memory this process has held, in bytes, over all ranks the largest: on a GPU that which
 * it took of the GPU's, else of the machine's. Collective. */
static double peak_bytes(struct mm_job *job) {
    double bytes = job->dev->asynchronous
                       ? (double)(mm_arena_peak_bytes(job->dev) + job->dev->own_bytes)
                       : peak_resident_bytes();
    return mm_comm_max(job->comm, bytes);
}

void mm_report_divergence(const struct mm_job *job, struct mm_metrics *to) {
    const struct mm_results *r = &job->results;
    mm_metrics_number(to, "forget_answer_probability_start", r->at_start.forget_answer_probability);
    mm_metrics_number(to, "forget_answer_probability_unlearn",
                      r->after_unlearning.forget_answer_probability);
    mm_metrics_number(to, "forget_answer_probability_relearn",
                      r->after_relearning.forget_answer_probability);
    for (size_t i = 0; i < job->config->relearn.attacks_n && i < r->attacks_n; i++) {
        char *key = mm_format("retain_loss_%s", job->config->relearn.attacks[i].name);
        mm_metrics_number(to, key, r->attacks[i].retain_loss);
        mm_free(key);
    }
    if (!job->config->evaluate.kl.file)
        return;
    mm_metrics_number(to, "kl_unlearn", r->after_unlearning.kl);
    mm_metrics_number(to, "kl_relearn", r->after_relearning.kl);
    if (r->kept_passes != SIZE_MAX)
        mm_metrics_count(to, "kept_passes", r->kept_passes);
}

static void write_losses(struct mm_job *job) {
    const struct {
        const char *forget, *retain;
        const struct mm_evaluation *e;
    } rows[] = {{"forget_loss_start", "retain_loss_start", &job->results.at_start},
                {"forget_loss_unlearn", "retain_loss_unlearn", &job->results.after_unlearning},
                {"forget_loss_relearn", "retain_loss_relearn", &job->results.after_relearning}};
    for (size_t i = 0; i < 3; i++) {
        mm_metrics_number(job->metrics, rows[i].forget, rows[i].e->forget_loss);
        mm_metrics_number(job->metrics, rows[i].retain, rows[i].e->retain_loss);
    }
}

void mm_report_scores(const struct mm_job *job, struct mm_metrics *to, double score) {
    mm_metrics_number(to, "score", score);
    for (size_t i = 0; i < job->config->relearn.attacks_n; i++) {
        const char *name = job->config->relearn.attacks[i].name;
        struct mm_attack_end end = {.score = NAN, .retain_loss = NAN};
        if (i < job->results.attacks_n)
            end = job->results.attacks[i];
        char *key = mm_format("score_%s", name);
        mm_metrics_number(to, key, end.score);
        mm_free(key);
        key = mm_format("diverged_%s", name);
        if (end.diverged)
            mm_metrics_text(to, key, end.diverged);
        mm_free(key);
    }
}

/* Attack i, if it only made the forget loss higher, or broke the model, tells little. */
static const char *doubt(const struct mm_job *job, size_t i) {
    const struct mm_evaluation *before = mm_job_before_attacks(job);
    struct mm_attack_end end = job->results.attacks[i];
    if (end.score > before->forget_loss)
        return ", above the loss before the attack";
    return end.retain_loss > before->retain_loss + MM_UPHILL
               ? ", of an attack that broke the model: try a weaker one"
               : "";
}

static void print_attacks(const struct mm_job *job) {
    for (size_t i = 0; i < job->results.attacks_n; i++) {
        struct mm_attack_end end = job->results.attacks[i];
        const char *name = mm_config_attack(job->config, i).name;
        if (name && end.diverged)
            mm_log0(MM_LOG_INFO, "%-18s %12s", name, "diverged");
        else if (name && !isnan(end.score))
            mm_log0(MM_LOG_INFO, "%-18s %12.4f  lowest forget loss of this attack%s", name,
                    end.score, doubt(job, i));
    }
}

static void print_summary(const struct mm_job *job, double seconds, double peak) {
    const char *const names[] = {"start", "after unlearning", "after relearning"};
    const struct mm_evaluation *const all[] = {
        &job->results.at_start, &job->results.after_unlearning, &job->results.after_relearning};
    char text[32];
    mm_log0(MM_LOG_INFO, "%-18s %12s %12s", "", "forget loss", "retain loss");
    for (int i = 0; i < 3; i++)
        if (!isnan(all[i]->forget_loss))
            mm_log0(MM_LOG_INFO, "%-18s %12.4f %12.4f", names[i], all[i]->forget_loss,
                    all[i]->retain_loss);
    mm_log0(MM_LOG_INFO, "%.1f s, at most %s of %smemory a rank", seconds,
            mm_bytes_text(text, peak), job->dev->asynchronous ? "GPU " : "");
}

enum mm_status mm_report_result(struct mm_job *job, const char *reason, double score,
                                struct mm_error *err) {
    mm_job_watch_files(job, "result", MM_UNNUMBERED);
    double peak = peak_bytes(job), seconds = mm_now() - job->results.started;
    enum mm_status status = MM_OK;
    if (job->metrics)
        status = mm_owner_check(job->owner, err);
    if (job->metrics && status == MM_OK) {
        mm_metrics_be_patient(job->metrics, false);
        mm_metrics_begin(job->metrics, "result");
        mm_metrics_text(job->metrics, "status", reason ? "rejected" : "done");
        mm_metrics_text(job->metrics, "reason", reason ? reason : "");
        mm_report_scores(job, job->metrics, score);
        write_losses(job);
        mm_report_divergence(job, job->metrics);
        mm_metrics_number(job->metrics, "peak_bytes", peak);
        mm_metrics_number(job->metrics, "seconds", seconds);
        mm_standing_write(job, job->metrics, score);
        status = mm_metrics_end(job->metrics, err);
    }
    print_summary(job, seconds, peak);
    print_attacks(job);
    if (!isnan(score))
        mm_log0(MM_LOG_INFO, "score (lowest forget loss while relearning%s): %.4f",
                doubt(job, mm_job_scored(job, score)), score);
    return mm_comm_agree(job->comm, status, err);
}
