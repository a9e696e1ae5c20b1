/* stop.h - whether someone asked this process to end: SIGTERM, SIGUSR1 or SIGINT. */
#ifndef MM_STOP_H
#define MM_STOP_H

#include <stdbool.h>

/* From now on those signals are noted instead of ending the process. A second SIGINT ends it.
 * Local. */
void mm_stop_listen(void);
/* True once one came. Local: ranks agree through mm_comm_any. */
bool mm_stop_asked(void);

#endif
