/* command.h - the command line: the table of commands, and the words after one.
 *
 * A row says everything about a command; reading, usage and help walk the rows. All is local. */
#ifndef MM_CONFIG_COMMAND_H
#define MM_CONFIG_COMMAND_H

#include "src/config/config.h"

struct mm_command_row {
    const char *name, *subject; /* its word, and what its first argument is: "CONFIG" */
    const char *help;
    const char *unused; /* sections and keys of a config that it does not read, each after a ' ';
                           NULL: it reads none */
    bool plans;         /* it takes --ranks N and --machine NAME */
};

/* By enum mm_command. */
extern const struct mm_command_row mm_command_rows[MM_COMMANDS];

struct mm_command_line {
    enum mm_command command;
    const char *subject;
    char **overrides; /* [overrides_n], the caller frees with mm_free; the texts are argv's */
    size_t overrides_n;
    int ranks;           /* 0: not given */
    const char *machine; /* NULL: not given */
    bool help; /* wanted for this command, or, without a word before it, for all: then nothing else
                  is set */
    bool all, version;
};

/* The words of main, in any order after the command: one subject, key=value, options. A word with
 * '=' is the subject where nothing else could be. MM_BAD_INPUT: the text names the word; what there
 * is of overrides is set all the same. */
enum mm_status mm_command_line_read(struct mm_command_line *line, int argc, char **argv,
                                    struct mm_error *err);

/* Help for one command, with the keys of a config that concern it; or for all of them, with all
 * keys. The caller frees with mm_free. */
char *mm_command_help(enum mm_command command);
char *mm_commands_help(void);

#endif
