/* main.c - the command line: which command, on which ranks, with which exit status. */
#include "io/checkpoint.h"
#include "io/files.h"
#include "src/run/job.h"
#include "src/run/output.h"
#include "src/run/place.h"
#include "src/run/plan.h"
#include "src/run/pretrain.h"
#include "src/run/stop.h"
#include "src/run/trials.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char usage[] =
    "mudman-mpi - unlearning that fine-tuning does not bring back (MUDMAN), on MPI ranks\n"
    "\n"
    "  mudman-mpi run CONFIG [key=value ...]       unlearn, relearn, evaluate, as the config says\n"
    "  mudman-mpi resume RUN_DIR [key=value ...]   continue from the newest valid checkpoint, on "
    "any\n"
    "                                              number of ranks\n"
    "  mudman-mpi eval CONFIG [key=value ...]      losses and multiple-choice accuracy only\n"
    "  mudman-mpi pretrain CONFIG [key=value ...]  train a small model from scratch\n"
    "  mudman-mpi plan CONFIG [key=value ...] [--ranks N]\n"
    "                                              check everything, print the memory of a rank\n"
    "  mudman-mpi trials CONFIG [key=value ...]    serve trials: JSON lines in and out, for "
    "tools/search.py\n"
    "  mudman-mpi inspect FILE                     what a checkpoint, data file or run folder "
    "holds, and\n"
    "                                              whether it is intact\n"
    "  mudman-mpi --help | --version\n"
    "\n"
    "The same words under 'srun', 'mpirun --bind-to none' or alone (one rank). Keys are dotted\n"
    "(unlearn.adv_lr=0.01) or top-level (seed=7); an override replaces the file's value.\n"
    "\n"
    "device=auto computes on GPUs, in bfloat16, where every rank has one, else on the CPU, in\n"
    "float32; a rank takes the GPU of its number on the machine. GPUs talk over NCCL, or with\n"
    "transport=staged through host memory, which lets ranks share one.\n"
    "\n"
    "Exit status: 0 done; 2 bad input (config, file, arguments); 3 stopped by a signal or before\n"
    "the job's time limit, after a checkpoint (resume it); 4 rejected (retain-loss budget "
    "exceeded, not finite); 1 anything "
    "else.\n"
    "\n";

struct command_line {
    const char *command, *subject;
    char **overrides;
    size_t overrides_n;
    int ranks;
};

static enum mm_status parse(struct command_line *line, int argc, char **argv,
                            struct mm_error *err) {
    static const char *const commands[] = {"run",  "resume", "eval",   "pretrain",
                                           "plan", "trials", "inspect"};
    size_t n = sizeof commands / sizeof *commands, known = 0;
    *line = (struct command_line){.command = argc > 1 ? argv[1] : "nothing"};
    while (known < n && strcmp(commands[known], line->command) != 0)
        known++;
    if (known == n)
        return mm_fail(err, MM_BAD_INPUT,
                       "%s is no command: run, resume, eval, pretrain, plan, "
                       "trials or inspect; see mudman-mpi --help",
                       line->command);
    if (argc < 3)
        return mm_fail(err, MM_BAD_INPUT, "%s needs a %s; see mudman-mpi --help", line->command,
                       strcmp(line->command, "resume") == 0    ? "run folder"
                       : strcmp(line->command, "inspect") == 0 ? "file"
                                                               : "config");
    line->subject = argv[2];
    line->overrides = argv + 3;
    bool plan = strcmp(line->command, "plan") == 0, inspect = strcmp(line->command, "inspect") == 0;
    for (int i = 3; i < argc; i++) {
        if (plan && strcmp(argv[i], "--ranks") == 0 && i + 2 == argc) {
            char *end;
            long ranks = strtol(argv[i + 1], &end, 10);
            if (*end || ranks < 1 || ranks > 1000000)
                return mm_fail(err, MM_BAD_INPUT, "--ranks %s: not a number of ranks", argv[i + 1]);
            line->ranks = (int)ranks;
            break;
        }
        if (inspect || !strchr(argv[i], '=') || argv[i][0] == '-')
            return mm_fail(err, MM_BAD_INPUT,
                           "argument '%s' is not understood; overrides read "
                           "key=value, see mudman-mpi --help",
                           argv[i]);
        line->overrides_n++;
    }
    return MM_OK;
}

/* Whether a command has a state to save when it is stopped. */
static bool trains(const char *command) {
    return strcmp(command, "run") == 0 || strcmp(command, "resume") == 0 ||
           strcmp(command, "trials") == 0;
}

/* From here on the config says how long ranks wait for each other. */
static enum mm_status open_place(struct mm_comm *comm, struct mm_device **dev,
                                 struct mm_config *config, bool resumed, struct mm_error *err) {
    mm_comm_watch_begin(comm, MM_PATIENCE_FOR_FILES * config->timeout, "start-up", MM_UNNUMBERED);
    enum mm_status status = mm_place_open(dev, comm, config, resumed, err);
    mm_comm_watch_begin(comm, MM_PATIENCE_FOR_FILES * config->timeout, "start-up", MM_UNNUMBERED);
    return status;
}

/* Unlearning, export, relearning, result: of a new run or a resumed one. */
static enum mm_status train(struct mm_comm *comm, struct mm_device *dev,
                            const struct mm_config *config, const char *resume,
                            const struct mm_checkpoint_info *info, struct mm_error *err) {
    struct mm_job job;
    double score = NAN;
    char *reason = NULL;
    mm_stop_read_limit();
    enum mm_status status = mm_job_open(&job, comm, dev, config, MM_JOB_TRAIN, err);
    if (status != MM_OK)
        return status;
    status = mm_unlearn(&job, resume, info, &reason, err);
    if (status == MM_OK && mm_config_relearn_passes(config))
        status = mm_relearn(&job, &score, &reason, err);
    if (status == MM_OK || reason) {
        enum mm_status written = mm_job_result(&job, reason, score, err);
        if (written != MM_OK)
            status = written;
        else if (reason)
            mm_fail(err, MM_REJECTED, "rejected: %s", reason);
    }
    mm_free(reason);
    mm_job_close(&job);
    return status;
}

static enum mm_status resume_run(struct mm_comm *comm, struct mm_device **dev,
                                 const struct command_line *line, struct mm_error *err) {
    struct mm_checkpoint_info info = {0};
    struct mm_config config = {0};
    char *folder = NULL, *path = mm_format("%s/config.yaml", line->subject), *dir = NULL;
    enum mm_status status = mm_config_check_resume(line->overrides, line->overrides_n, err);
    if (status == MM_OK)
        status = mm_checkpoint_find(comm, line->subject, &folder, &info, err);
    if (status == MM_OK) {
        status = mm_config_parse(&config, info.config, path, line->overrides, line->overrides_n,
                                 MM_RESUME, err);
        status = mm_comm_agree(comm, status, err);
    }
    /* The folder may have been moved since: it is where the user says it is. */
    if (status == MM_OK && !(dir = realpath(line->subject, NULL)))
        status = mm_fail(err, MM_FAILED, "%s: %s", line->subject, strerror(errno));
    status = mm_comm_agree(comm, status, err);
    if (status == MM_OK) {
        mm_free(config.output.dir);
        config.output.dir = mm_strdup(dir);
        status = open_place(comm, dev, &config, true, err);
    }
    if (status == MM_OK)
        status = train(comm, *dev, &config, folder, &info, err);
    free(dir);
    mm_config_free(&config);
    mm_checkpoint_info_free(&info);
    mm_free(folder);
    mm_free(path);
    return status;
}

static enum mm_status evaluate(struct mm_comm *comm, struct mm_device *dev,
                               const struct mm_config *config, struct mm_error *err) {
    struct mm_job job;
    enum mm_status status = mm_job_open(&job, comm, dev, config, MM_JOB_EVALUATE, err);
    if (status != MM_OK)
        return status;
    mm_evaluate(job.evaluator, &job.at_start);
    if (mm_comm_rank(comm) == 0) {
        printf("forget loss %.6f\nretain loss %.6f\n", job.at_start.forget_loss,
               job.at_start.retain_loss);
        for (size_t i = 0; i < job.data.questions_n; i++)
            printf("accuracy %s %.6f (%zu questions)\n", config->evaluate.multiple_choice[i].name,
                   job.at_start.accuracy[i], job.data.questions[i].n);
    }
    if (!mm_evaluation_finite(&job.at_start, job.data.questions_n))
        status = mm_fail(err, MM_REJECTED,
                         "%s: the evaluation is not finite: the weights hold a NaN or infinity, or "
                         "model.dtype has too small a range for them",
                         config->model.path);
    mm_job_close(&job);
    return status;
}

static enum mm_status with_config(struct mm_comm *comm, struct mm_device **dev,
                                  const struct command_line *line, struct mm_error *err) {
    static const struct {
        const char *name;
        enum mm_command command;
    } commands[] = {{"run", MM_RUN},
                    {"eval", MM_EVAL},
                    {"pretrain", MM_PRETRAIN},
                    {"plan", MM_PLAN},
                    {"trials", MM_TRIALS}};
    size_t k = 0;
    while (strcmp(commands[k].name, line->command) != 0)
        k++;
    struct mm_config config = {0};
    enum mm_status status = mm_config_read(&config, line->subject, line->overrides,
                                           line->overrides_n, commands[k].command, err);
    status = mm_comm_agree(comm, status, err);
    bool plan = commands[k].command == MM_PLAN;
    if (status == MM_OK && !plan)
        status = open_place(comm, dev, &config, false, err);
    if (status == MM_OK)
        switch (commands[k].command) {
        case MM_RUN:
            status = train(comm, *dev, &config, NULL, NULL, err);
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
                status = mm_plan(comm, &config, line->ranks, err);
        }
    mm_config_free(&config);
    return status;
}

static enum mm_status dispatch(struct mm_comm *comm, struct mm_device **dev,
                               const struct command_line *line, struct mm_error *err) {
    if (strcmp(line->command, "inspect") == 0) {
        mm_comm_watch_begin(comm, 0, "inspect", MM_UNNUMBERED); /* may take rank 0 any time */
        return mm_comm_rank(comm) == 0 ? mm_inspect(line->subject, err) : MM_OK;
    }
    return strcmp(line->command, "resume") == 0 ? resume_run(comm, dev, line, err)
                                                : with_config(comm, dev, line, err);
}

/* After --help and --version. */
static int printed(void) {
    struct mm_error err;
    enum mm_status status = mm_output_end(&err);
    if (status != MM_OK)
        fprintf(stderr, "mudman-mpi: %s\n", err.text);
    return status;
}

int main(int argc, char **argv) {
    mm_output_begin();
    if (argc > 1 && strcmp(argv[1], "--version") == 0) {
        puts("mudman-mpi " MM_VERSION);
        return printed();
    }
    if (argc > 1 && (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0)) {
        char *keys = mm_config_help();
        printf("%s%s", usage, keys);
        mm_free(keys);
        return printed();
    }
    struct mm_error err = {""};
    struct command_line line;
    struct mm_device *dev = NULL;
    enum mm_status status = parse(&line, argc, argv, &err);
    double patience = mm_config_early_timeout(line.overrides, line.overrides_n);
    if (status == MM_OK && trains(line.command))
        mm_stop_listen(); /* from the start: a signal while files are read is no other */
    struct mm_comm *comm = mm_comm_join(&argc, &argv, MM_PATIENCE_FOR_FILES * patience, &err);
    if (!comm) {
        fprintf(stderr, "mudman-mpi: %s\n", err.text);
        return MM_BAD_INPUT;
    }
    int rank = mm_comm_rank(comm);
    mm_log_init(rank, getenv("MUDMAN_DEBUG") ? MM_LOG_DEBUG : MM_LOG_INFO);
    if (status == MM_OK)
        status = dispatch(comm, &dev, &line, &err);
    if (status == MM_OK)
        status = mm_output_end(&err);
    if (status != MM_OK && rank == 0)
        fprintf(stderr, "mudman-mpi: %s\n", err.text);
    mm_comm_free(comm); /* before the device, whose memory it works on */
    mm_device_free(dev);
    if (mm_live_blocks() != 0)
        mm_log(MM_LOG_DEBUG, "rank %d: %ld blocks were not freed", rank, mm_live_blocks());
    return status;
}
