/* Stands in for the engine's client, so that what is measured is the worker: sleeps PAUSE_MS and ends. */
#include <unistd.h>

int main(void) {
    if (PAUSE_MS > 0) usleep(PAUSE_MS * 1000);
    return 0;
}
