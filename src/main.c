/* main.c - the command line: which command, on which ranks, with which exit status. */
#include "io/checkpoint.h"
#include "io/files.h"
#include "io/inspect.h"
#include "kernels/blas.h"
#include "kernels/onednn.h"
#include "src/config/command.h"
#include "src/run/job.h"
#include "src/run/output.h"
#include "src/run/place.h"
#include "src/run/plan.h"
#include "src/run/pretrain.h"
#include "src/run/relearn.h"
#include "src/run/report.h"
#include "src/run/resume.h"
#include "src/run/standing.h"
#include "src/run/stop.h"
#include "src/run/trials.h"
#include "src/run/unlearn.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Whether a command has a state to save when it is stopped. */
static bool trains(enum mm_command command) {
    return command == MM_RUN || command == MM_RESUME || command == MM_TRIALS;
}

/* From here on the config says how long ranks wait for each other. */
static enum mm_status open_place(struct mm_comm *comm, struct mm_device **dev,
                                 struct mm_config *config, enum mm_command command,
                                 struct mm_error *err) {
    mm_comm_watch_begin(comm, MM_PATIENCE_FOR_FILES * config->timeout, "start-up", MM_UNNUMBERED);
    if (!trains(command) && config->model.shard == MM_SHARD_AUTO)
        config->model.shard = MM_SHARD_NONE;
    enum mm_status status = mm_place_open(dev, comm, config, command == MM_RESUME, err);
    mm_comm_watch_begin(comm, MM_PATIENCE_FOR_FILES * config->timeout, "start-up", MM_UNNUMBERED);
    return status;
}

/* What a resumed run begins with; of a new one all is empty but the owner. */
struct beginning {
    struct mm_owner *owner;         /* of the run folder; claimed by a resume */
    bool again;                     /* a run that stopped before its first checkpoint */
    char *folder;                   /* the checkpoint; NULL: none, from the start */
    struct mm_checkpoint_info info; /* of it */
};

/* Unlearning, export, relearning, result: of a new run or a resumed one. */
static enum mm_status train(struct mm_comm *comm, struct mm_device *dev,
                            const struct mm_config *config, const struct beginning *begin,
                            struct mm_error *err) {
    struct mm_job job;
    double score = NAN;
    char *reason = NULL;
    mm_stop_read_limit();
    enum mm_status status = mm_job_open(&job, comm, dev, config, MM_JOB_TRAIN, err);
    if (status != MM_OK)
        return status;
    job.owner = begin->owner;
    job.again = begin->again;
    status = mm_unlearn(&job, begin->folder, &begin->info, &reason, err);
    if (status == MM_OK && mm_config_relearn_passes(config))
        status = mm_relearn(&job, &score, &reason, err);
    if (status == MM_OK || reason) {
        enum mm_status written = mm_report_result(&job, reason, score, err);
        if (written != MM_OK)
            status = written;
        else if (reason)
            mm_fail(err, MM_REJECTED, "rejected: %s", reason);
    }
    if (status == MM_STOPPED)
        mm_job_mark_stopped(&job);
    mm_free(reason);
    mm_job_close(&job);
    return status;
}

/* On rank 0: the folder is this job's, if there is anything in it. What a crash left under other
 * names gets its name back. *config is that of a run without any checkpoint. */
static enum mm_status claim_checkpoints(const char *dir, struct mm_owner *owner, char **config,
                                        struct mm_error *err) {
    size_t *loops = NULL, n = 0, bytes;
    char *path = mm_format("%s/config.yaml", dir), *model = mm_format("%s/model", dir);
    char *checkpoints = mm_format("%s/checkpoints", dir);
    bool any = mm_path_exists(checkpoints), begun = mm_path_exists(path);
    enum mm_status status = any || begun ? mm_owner_claim(owner, dir, err) : MM_OK;
    if (status == MM_OK && any)
        status = mm_checkpoint_recover(dir, err);
    if (status == MM_OK)
        status = mm_checkpoint_list(dir, &loops, &n, err);
    if (status == MM_OK && n == 0 && begun && !mm_path_exists(model))
        status = mm_file_read(path, config, &bytes, err);
    mm_free(loops);
    mm_free(checkpoints);
    mm_free(model);
    mm_free(path);
    return status;
}

/* The checkpoint that a run goes on from; with none, whose config came before all else, it starts
 * again. */
static enum mm_status find_beginning(struct mm_comm *comm, const char *dir, struct beginning *begin,
                                     struct mm_error *err) {
    char *config = NULL;
    enum mm_status status = MM_OK;
    if (mm_comm_rank(comm) == 0)
        status = claim_checkpoints(dir, begin->owner, &config, err);
    status = mm_comm_agree(comm, status, err);
    if (status != MM_OK)
        return status;
    size_t bytes = config ? strlen(config) + 1 : 0;
    mm_comm_broadcast(comm, 0, &bytes, sizeof bytes);
    if (!bytes)
        return mm_checkpoint_find(comm, dir, &begin->folder, &begin->info, err);
    begin->again = true;
    begin->info.config = config ? config : mm_calloc(bytes, 1);
    mm_comm_broadcast(comm, 0, begin->info.config, bytes);
    mm_log0(MM_LOG_INFO, "%s has no checkpoint yet: starting again with its config.yaml", dir);
    return MM_OK;
}

static enum mm_status start_run(struct mm_comm *comm, struct mm_device *dev,
                                const struct mm_config *config, struct mm_error *err) {
    struct beginning begin = {.owner = mm_owner_create()};
    enum mm_status status = train(comm, dev, config, &begin, err);
    mm_owner_free(begin.owner);
    return status;
}

static enum mm_status resume_run(struct mm_comm *comm, struct mm_device **dev,
                                 const struct mm_command_line *line, struct mm_error *err) {
    struct beginning begin = {.owner = mm_owner_create()};
    struct mm_config config = {0};
    char *path = mm_format("%s/config.yaml", line->subject), *dir = NULL;
    enum mm_status status = mm_config_check_resume(line->overrides, line->overrides_n, err);
    if (status == MM_OK)
        status = find_beginning(comm, line->subject, &begin, err);
    if (status == MM_OK) {
        status = mm_config_parse(&config, begin.info.config, path, line->overrides,
                                 line->overrides_n, MM_RESUME, err);
        if (status == MM_OK)
            status = mm_resume_find_inputs(&config, line->subject, err);
        status = mm_comm_agree(comm, status, err);
    }
    /* The folder may have been moved since: it is where the user says it is. */
    if (status == MM_OK && !(dir = realpath(line->subject, NULL)))
        status = mm_fail(err, MM_FAILED, "%s: %s", line->subject, strerror(errno));
    status = mm_comm_agree(comm, status, err);
    if (status == MM_OK) {
        mm_free(config.output.dir);
        config.output.dir = mm_strdup(dir);
        status = mm_identity_agree_config(comm, &config, err);
    }
    if (status == MM_OK && mm_comm_rank(comm) == 0)
        mm_resume_warn_edited(dir, &config, line->overrides, line->overrides_n);
    if (status == MM_OK)
        status = open_place(comm, dev, &config, MM_RESUME, err);
    if (status == MM_OK)
        status = train(comm, *dev, &config, &begin, err);
    free(dir);
    mm_config_free(&config);
    mm_checkpoint_info_free(&begin.info);
    mm_free(begin.folder);
    mm_owner_free(begin.owner);
    mm_free(path);
    return status;
}

static enum mm_status evaluate(struct mm_comm *comm, struct mm_device *dev,
                               const struct mm_config *config, struct mm_error *err) {
    struct mm_job job;
    enum mm_status status = mm_job_open(&job, comm, dev, config, MM_JOB_EVALUATE, err);
    if (status != MM_OK)
        return status;
    mm_evaluate(job.evaluator, &job.results.at_start);
    if (mm_comm_rank(comm) == 0) {
        mm_standing_print(&job);
        printf("forget loss %.6f\nretain loss %.6f\n", job.results.at_start.forget_loss,
               job.results.at_start.retain_loss);
        for (size_t i = 0; i < job.data.questions_n; i++)
            printf("accuracy %s %.6f (%zu questions)\n", config->evaluate.multiple_choice[i].name,
                   job.results.at_start.accuracy[i], job.data.questions[i].n);
    }
    if (!mm_evaluation_finite(&job.results.at_start, job.data.questions_n))
        status = mm_fail(err, MM_REJECTED,
                         "%s: the evaluation is not finite: the weights hold a NaN or infinity, or "
                         "model.dtype has too small a range for them",
                         config->model.path);
    mm_job_close(&job);
    return status;
}

static enum mm_status with_config(struct mm_comm *comm, struct mm_device **dev,
                                  const struct mm_command_line *line, struct mm_error *err) {
    struct mm_config config = {0};
    enum mm_status status = mm_config_read(&config, line->subject, line->overrides,
                                           line->overrides_n, line->command, err);
    status = mm_comm_agree(comm, status, err);
    if (status == MM_OK)
        status = mm_identity_agree_config(comm, &config, err);
    if (status == MM_OK && line->command != MM_PLAN)
        status = open_place(comm, dev, &config, line->command, err);
    if (status == MM_OK)
        switch (line->command) {
        case MM_RUN:
            status = start_run(comm, *dev, &config, err);
            break;
        case MM_EVAL:
            status = evaluate(comm, *dev, &config, err);
            break;
        case MM_TRIALS:
            status = mm_trials(comm, *dev, &config, line->subject, line->overrides,
                               line->overrides_n, err);
            break;
        case MM_PRETRAIN:
            status = mm_pretrain(comm, *dev, &config, err);
            break;
        default:
            if (mm_comm_rank(comm) == 0)
                status = mm_plan(comm, &config, line->ranks, line->machine, err);
        }
    mm_config_free(&config);
    return status;
}

/* Ranks with different commands would wait for each other in different places. Collective. */
static enum mm_status agree_command(struct mm_comm *comm, const struct mm_command_line *line,
                                    enum mm_status status, struct mm_error *err) {
    enum mm_command first = line->command;
    status = mm_comm_agree(comm, status, err);
    if (status != MM_OK)
        return status;
    mm_comm_broadcast(comm, 0, &first, sizeof first);
    if (first != line->command)
        status = mm_fail(err, MM_BAD_INPUT,
                         "rank %d was started with the command %s, but rank 0 with %s: give all "
                         "ranks the same",
                         mm_comm_rank(comm), mm_command_rows[line->command].name,
                         mm_command_rows[first].name);
    return mm_comm_agree(comm, status, err);
}

static enum mm_status dispatch(struct mm_comm *comm, struct mm_device **dev,
                               const struct mm_command_line *line, struct mm_error *err) {
    if (line->command == MM_INSPECT) {
        mm_comm_watch_begin(comm, 0, "inspect", MM_UNNUMBERED); /* may take rank 0 any time */
        return mm_comm_rank(comm) == 0 ? mm_inspect(line->subject, err) : MM_OK;
    }
    return line->command == MM_RESUME ? resume_run(comm, dev, line, err)
                                      : with_config(comm, dev, line, err);
}

/* What this build computes with, here. */
static void print_version(void) {
    char processor[MM_PROCESSOR_TEXT];
    char *blas = mm_blas_text(), *mpi = mm_comm_library_text(), *hdf5 = mm_h5_library_text();
    char *onednn = mm_onednn_text(), *cuda = mm_cuda_text();
    printf("mudman-mpi %s\n"
           "processor: %s\n"
           "BLAS: %s\n"
           "oneDNN: %s\n"
           "MPI: %s\n"
           "HDF5: %s\n"
           "CUDA: %s\n",
           mm_version, mm_processor_text(mm_processor(), processor), blas, onednn, mpi, hdf5, cuda);
    mm_free(blas);
    mm_free(onednn);
    mm_free(mpi);
    mm_free(hdf5);
    mm_free(cuda);
}

static void print_help(const struct mm_command_line *line) {
    char *text = line->all ? mm_commands_help() : mm_command_help(line->command);
    fputs(text, stdout);
    mm_free(text);
}

/* After --help and --version. */
static enum mm_status printed(void) {
    struct mm_error err;
    enum mm_status status = mm_output_end(&err);
    if (status != MM_OK)
        fprintf(stderr, "mudman-mpi: %s\n", err.text);
    return status;
}

/* On all ranks of the job. */
static enum mm_status run_job(const struct mm_command_line *line, int *argc, char ***argv,
                              enum mm_status status, struct mm_error *err) {
    struct mm_device *dev = NULL;
    double patience = mm_config_early_timeout(line->overrides, line->overrides_n);
    if (status == MM_OK && trains(line->command))
        mm_stop_listen(); /* from the start: a signal while files are read is no other */
    struct mm_comm *comm = mm_comm_join(argc, argv, MM_PATIENCE_FOR_FILES * patience, err);
    if (!comm) {
        fprintf(stderr, "mudman-mpi: %s\n", err->text);
        return MM_BAD_INPUT;
    }
    int rank = mm_comm_rank(comm);
    mm_log_init(rank, getenv("MUDMAN_DEBUG") ? MM_LOG_DEBUG : MM_LOG_INFO);
    status = agree_command(comm, line, status, err);
    if (status == MM_OK)
        status = dispatch(comm, &dev, line, err);
    if (status == MM_OK)
        status = mm_output_end(err);
    if (status != MM_OK && rank == 0)
        fprintf(stderr, "mudman-mpi: %s\n", err->text);
    mm_comm_free(comm); /* before the device, whose memory it works on */
    mm_device_free(dev);
    return status;
}

int main(int argc, char **argv) {
    mm_memory_settle();
    mm_output_begin();
    struct mm_error err = {""};
    struct mm_command_line line;
    enum mm_status status = mm_command_line_read(&line, argc, argv, &err);
    bool job = !line.help && !line.version;
    if (!line.help)
        mm_blas_settle(argv);
    if (line.version)
        print_version();
    if (line.help)
        print_help(&line);
    status = job ? run_job(&line, &argc, &argv, status, &err) : printed();
    mm_free(line.overrides);
    if (mm_live_blocks() != 0)
        mm_log(MM_LOG_DEBUG, "%ld blocks were not freed", mm_live_blocks());
    return status;
}
