/* A user of a decky who, on every event in a directory of theirs, swaps names in it and the directory
   itself for links, pipes and other directories: racer DIRECTORY AIM COUNT.
   COUNT is a file that holds how many swaps have been made. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/stat.h>
#include <unistd.h>

static const char *place, *aim;
static char aside[4096], last[4096];
static unsigned swaps;

static void path(char *out, const char *name) { snprintf(out, 4096, "%s/%s", place, name); }

/* Links to the aim under every name below that the commands of others show. */
static void fill(const char *directory) {
    DIR *processes = opendir("/proc");
    struct dirent *entry;
    while (processes && (entry = readdir(processes))) {
        char file[300], line[4096], link[8192], target[4096];
        snprintf(file, sizeof file, "/proc/%s/cmdline", entry->d_name);
        int fd = entry->d_name[0] > '0' && entry->d_name[0] <= '9' ? open(file, O_RDONLY) : -1;
        if (fd < 0) continue;
        ssize_t size = read(fd, line, sizeof line - 1);
        close(fd);
        for (ssize_t at = 0; at < size; at += strlen(line + at) + 1) {
            line[size] = 0;
            if (strncmp(line + at, "./", 2)) continue;
            snprintf(link, sizeof link, "%s/%s", directory, line + at + 2);
            snprintf(target, sizeof target, "%s/file", aim);
            if (symlink(target, link)) continue;
        }
    }
    if (processes) closedir(processes);
}

/* Either the aim or a directory in it that is empty. */
static int link_to_directory(const char *name) {
    char target[4096];
    snprintf(target, sizeof target, swaps % 2 ? "%s" : "%s/empty", aim);
    return symlink(target, name);
}

static void swap_directory(void) {
    if (rename(place, aside)) return;
    if (link_to_directory(place)) perror("symlink");
    usleep(rand() % 400);
    unlink(place);
    rename(aside, place);
}

static void swap(const char *name) {
    char here[4096], away[4096], target[4096], other[32];
    path(here, name);
    snprintf(other, sizeof other, "away.%u", swaps % 40);
    path(away, other);
    unlink(away);
    rmdir(away);
    switch (rand() % 8) {
    case 0:
        rename(here, away);
        if (link_to_directory(here)) return;
        break;
    case 1:
        rename(here, away);
        snprintf(target, sizeof target, "%s/file", aim);
        if (symlink(target, here)) return;
        break;
    case 2:
        rename(here, away);
        mkdir(here, 0777);
        chmod(here, 0777);
        fill(here);
        break;
    case 3:
        rename(here, away);
        mkfifo(here, 0666);
        break;
    case 4:
        unlink(here);
        rmdir(here);
        break;
    case 5:
        swap_directory();
        break;
    case 6:
        if (last[0]) renameat2(AT_FDCWD, here, AT_FDCWD, last, RENAME_EXCHANGE);
        break;
    default:
        rename(here, away);
        usleep(rand() % 300);
        rename(away, here);
    }
    if (rand() % 3 == 0) {
        usleep(rand() % 300);
        unlink(here);
        rmdir(here);
        rename(away, here);
    } else {
        strcpy(last, away);
    }
}

int main(int argc, char **argv) {
    if (argc != 4) return 2;
    place = argv[1], aim = argv[2];
    snprintf(aside, sizeof aside, "%s.aside", place);
    int count = open(argv[3], O_WRONLY | O_CREAT, 0644), events = inotify_init();
    if (inotify_add_watch(events, place, IN_ALL_EVENTS) < 0) return 1;
    char buffer[16384] __attribute__((aligned(8)));
    for (;;) {
        ssize_t size = read(events, buffer, sizeof buffer);
        for (char *at = buffer; size > 0 && at < buffer + size;) {
            struct inotify_event *event = (void *)at;
            at += sizeof *event + event->len;
            if (event->len && strncmp(event->name, "away.", 5)) swap(event->name);
            else if (!event->len && rand() % 4 == 0) swap_directory();
            else continue;
            char text[32];
            int length = snprintf(text, sizeof text, "%u\n", ++swaps);
            if (pwrite(count, text, length, 0) != length) return 1;
        }
        /* What the swaps themselves caused is no news. */
        struct stat known;
        if (stat(place, &known)) rename(aside, place);
    }
}
