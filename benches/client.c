/* Stands in for the engine's client, so that what is measured is the worker: sleeps PAUSE_MS and ends.
   The one that does not sleep has no start of the C library in it: that asks for the processor's features,
   and on a virtual machine each question traps, which would be half of all that is measured. */
#include <unistd.h>

#if PAUSE_MS > 0
int main(void) {
    usleep(PAUSE_MS * 1000);
    return 0;
}
#else
void _start(void) { _exit(0); }
#endif
