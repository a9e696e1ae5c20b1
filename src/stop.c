/* stop.c - see stop.h. */
#include "src/stop.h"

#include <signal.h>
#include <stddef.h>

static volatile sig_atomic_t asked;

static void note(int number) {
    asked = 1;
    if (number == SIGINT)
        signal(SIGINT, SIG_DFL);
}

void mm_stop_listen(void) {
    struct sigaction action = {.sa_handler = note, .sa_flags = SA_RESTART};
    sigemptyset(&action.sa_mask);
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGUSR1, &action, NULL);
    sigaction(SIGINT, &action, NULL);
}

bool mm_stop_asked(void) {
    return asked != 0;
}
