/* command.c - see command.h. */
#include "src/config/command.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define TRAINED " pretrain"

const struct mm_command_row mm_command_rows[MM_COMMANDS] = {
    [MM_RUN] = {"run", "CONFIG", "unlearn, relearn, evaluate, as the config says", TRAINED, false},
    [MM_RESUME] = {"resume", "RUN_DIR",
                   "continue from the newest valid checkpoint, on any number of ranks", TRAINED,
                   false},
    [MM_EVAL] = {"eval", "CONFIG", "losses and multiple-choice accuracy only",
                 " unlearn relearn checkpoint output pretrain", false},
    [MM_PRETRAIN] = {"pretrain", "CONFIG", "train a small model from scratch",
                     " model.path model.state_dtype unlearn relearn evaluate checkpoint", false},
    [MM_PLAN] = {"plan", "CONFIG", "check everything, print memory, messages and times", TRAINED,
                 true},
    [MM_TRIALS] = {"trials", "CONFIG", "serve trials: JSON lines in and out, for tools/search.py",
                   TRAINED, false},
    [MM_INSPECT] = {"inspect", "FILE",
                    "what a checkpoint, data file or run folder holds, and whether it is intact",
                    NULL, false},
};

/* -- reading ----------------------------------------------------------------------------------- */

static bool is_help(const char *word) {
    return strcmp(word, "--help") == 0 || strcmp(word, "-h") == 0;
}

static enum mm_status no_command(const char *word, struct mm_error *err) {
    char names[128] = "";
    for (int c = 0; c < MM_COMMANDS; c++)
        snprintf(names + strlen(names), sizeof names - strlen(names), "%s%s", c ? ", " : "",
                 mm_command_rows[c].name);
    return mm_fail(err, MM_BAD_INPUT, "%s is no %s: %s; see mudman-mpi --help",
                   word ? word : "nothing",
                   word && *word == '-' ? "option, nor a command" : "command", names);
}

/* Whether word *i is the option; its value, after it or after '=', is *value then, and *i moves on
 * to it. */
static bool read_option(const char *option, int argc, char **argv, int *i, const char **value) {
    size_t n = strlen(option);
    bool found = strncmp(argv[*i], option, n) == 0 && (!argv[*i][n] || argv[*i][n] == '=');
    if (found)
        *value = argv[*i][n] ? argv[*i] + n + 1 : ++*i < argc ? argv[*i] : "";
    return found;
}

static enum mm_status read_ranks(struct mm_command_line *line, const char *text,
                                 struct mm_error *err) {
    char *end;
    long ranks = strtol(text, &end, 10);
    if (!*text || *end || ranks < 1 || ranks > 1000000)
        return mm_fail(err, MM_BAD_INPUT, "--ranks '%s': not a number of ranks", text);
    line->ranks = (int)ranks;
    return MM_OK;
}

/* A key has no '/': a path may have '='. */
static bool is_override(const char *word) {
    const char *equals = strchr(word, '=');
    return equals && !memchr(word, '/', (size_t)(equals - word));
}

static enum mm_status read_word(struct mm_command_line *line, int argc, char **argv, int *i,
                                struct mm_error *err) {
    const struct mm_command_row *row = &mm_command_rows[line->command];
    char *word = argv[*i];
    const char *value;
    if (is_help(word)) {
        line->help = true;
        return MM_OK;
    }
    if (row->plans && read_option("--ranks", argc, argv, i, &value))
        return read_ranks(line, value, err);
    if (row->plans && read_option("--machine", argc, argv, i, &line->machine))
        return *line->machine ? MM_OK : mm_fail(err, MM_BAD_INPUT, "--machine needs a name");
    if (*word == '-')
        return mm_fail(err, MM_BAD_INPUT, "%s has no option '%s'; see mudman-mpi %s --help",
                       row->name, word, row->name);
    if (is_override(word))
        line->overrides[line->overrides_n++] = word;
    else if (!line->subject)
        line->subject = word;
    else
        return mm_fail(err, MM_BAD_INPUT,
                       "argument '%s' is not understood: %s takes one %s%s; see mudman-mpi %s "
                       "--help",
                       word, row->name, row->subject,
                       row->unused ? ", and overrides read key=value" : "", row->name);
    return MM_OK;
}

/* A file's name with '=' and nothing else: the first word, if there is such a file. */
static void find_subject(struct mm_command_line *line) {
    if (line->subject || !line->overrides_n || access(line->overrides[0], F_OK) != 0)
        return;
    line->subject = line->overrides[0];
    line->overrides_n--;
    memmove(line->overrides, line->overrides + 1, line->overrides_n * sizeof *line->overrides);
}

enum mm_status mm_command_line_read(struct mm_command_line *line, int argc, char **argv,
                                    struct mm_error *err) {
    *line = (struct mm_command_line){0};
    const char *word = argc > 1 ? argv[1] : NULL;
    line->version = word && strcmp(word, "--version") == 0;
    line->all = line->help = word && is_help(word);
    if (line->help || line->version)
        return MM_OK;
    int command = 0;
    while (word && command < MM_COMMANDS && strcmp(mm_command_rows[command].name, word) != 0)
        command++;
    if (!word || command == MM_COMMANDS)
        return no_command(word, err);
    line->command = (enum mm_command)command;
    line->overrides = mm_calloc((size_t)argc, sizeof *line->overrides);
    enum mm_status status = MM_OK;
    for (int i = 2; i < argc && status == MM_OK && !line->help; i++)
        status = read_word(line, argc, argv, &i, err);
    if (status != MM_OK || line->help)
        return status;
    find_subject(line);
    const struct mm_command_row *row = &mm_command_rows[command];
    if (!line->subject)
        return mm_fail(err, MM_BAD_INPUT, "%s needs a %s; see mudman-mpi %s --help", row->name,
                       row->subject, row->name);
    if (!row->unused && line->overrides_n)
        return mm_fail(err, MM_BAD_INPUT,
                       "argument '%s' is not understood: %s takes nothing but a %s",
                       line->overrides[0], row->name, row->subject);
    return MM_OK;
}

/* -- help -------------------------------------------------------------------------------------- */

static const char heading[] =
    "mudman-mpi - unlearning that fine-tuning does not bring back (MUDMAN), on MPI ranks\n\n";

static const char notes[] =
    "\n"
    "  mudman-mpi COMMAND --help                   the same for one command, with its keys only\n"
    "  mudman-mpi --help | --version\n"
    "\n"
    "The same words under 'srun', 'mpirun --bind-to none' or alone (one rank). Keys are dotted\n"
    "(unlearn.adv_lr=0.01) or top-level (seed=7); an override replaces the file's value.\n"
    "\n"
    "device=auto computes on GPUs, in bfloat16, where every rank has one, else on the CPU, in\n"
    "float32; a rank takes the GPU of its number on the machine. GPUs talk over NCCL, or with\n"
    "transport=staged through host memory, which lets ranks share one.\n";

static const char statuses[] =
    "\n"
    "Exit status: 0 done; 2 bad input (config, file, arguments); 3 stopped by a signal or before\n"
    "the job's time limit, after a checkpoint (resume it); 4 rejected (retain-loss budget "
    "exceeded,\n"
    "not finite); 5 a rank, the network or a file system failed or hung (resume it); 1 anything "
    "else.\n\n";

static char *usage_of(const struct mm_command_row *row) {
    return mm_format("  mudman-mpi %s %s%s%s", row->name, row->subject,
                     row->unused ? " [key=value ...]" : "",
                     row->plans ? " [--ranks N] [--machine M]" : "");
}

static void print_usage(FILE *out, const struct mm_command_row *row) {
    enum { COLUMN = 46 };
    char *usage = usage_of(row);
    bool fits = strlen(usage) < COLUMN - 1;
    fprintf(out, "%-*s%s%*s%s\n", fits ? COLUMN : 0, usage, fits ? "" : "\n", fits ? 0 : COLUMN, "",
            row->help);
    mm_free(usage);
}

/* The text of a stream that was opened by open_memstream. */
static char *text_of(FILE *out, char **text) {
    MM_CHECK(fclose(out) == 0, "out of memory");
    char *copy = mm_strdup(*text);
    free(*text); /* open_memstream's, not ours to count */
    return copy;
}

char *mm_commands_help(void) {
    char *text = NULL, *keys = mm_config_help(NULL, MM_CONFIG_ALL_KEYS);
    size_t n = 0;
    FILE *out = open_memstream(&text, &n);
    MM_CHECK(out, "out of memory");
    fputs(heading, out);
    for (int c = 0; c < MM_COMMANDS; c++)
        print_usage(out, &mm_command_rows[c]);
    fprintf(out, "%s%s%s", notes, statuses, keys);
    mm_free(keys);
    return text_of(out, &text);
}

char *mm_command_help(enum mm_command command) {
    const struct mm_command_row *row = &mm_command_rows[command];
    enum mm_config_keys which =
        command == MM_RESUME ? MM_CONFIG_KEYS_OF_RESUME : MM_CONFIG_ALL_KEYS;
    char *text = NULL, *keys = row->unused ? mm_config_help(row->unused, which) : NULL;
    size_t n = 0;
    FILE *out = open_memstream(&text, &n);
    MM_CHECK(out, "out of memory");
    print_usage(out, row);
    if (row->plans)
        fputs("\n--ranks N: for a job of N ranks; without it of as many as there are.\n"
              "--machine M: predict the time of a loop; M is h100x8, h200x8, or a file\n"
              "(docs/scaling.md).\n",
              out);
    if (command == MM_RESUME)
        fputs("\nOnly keys that leave the finished loops valid may be overridden.\n", out);
    fprintf(out, "%s%s", statuses, keys ? keys : "");
    mm_free(keys);
    return text_of(out, &text);
}
