/* Delays each stat of a file below a folder, as a busy shared file system does, and counts them.
 *
 *     gcc -shared -fPIC -o slow_stat.so slow_stat.c -ldl
 *     LD_PRELOAD=./slow_stat.so STAT_FOLDER=/folder STAT_DELAY_US=5000 STAT_COUNT=count.txt command
 *
 * Relative paths count as below the folder. Each process appends its number of calls to STAT_COUNT when it ends.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

static long calls;

static void delay(const char *path) {
    const char *folder = getenv("STAT_FOLDER"), *us = getenv("STAT_DELAY_US");
    if (path[0] == '/' && folder && strncmp(path, folder, strlen(folder)) != 0) return;
    __atomic_add_fetch(&calls, 1, __ATOMIC_RELAXED);
    if (us && atol(us)) {
        struct timespec time = {atol(us) / 1000000, atol(us) % 1000000 * 1000};
        nanosleep(&time, NULL);
    }
}

#define DELAYED(name, type)                                                   \
    int name(const char *path, struct type *buffer) {                         \
        int (*real)(const char *, struct type *) = dlsym(RTLD_NEXT, #name);   \
        delay(path);                                                          \
        return real(path, buffer);                                            \
    }

DELAYED(stat, stat)
DELAYED(lstat, stat)
DELAYED(stat64, stat64)
DELAYED(lstat64, stat64)

__attribute__((destructor)) static void report(void) {
    const char *name = getenv("STAT_COUNT");
    FILE *file = name && calls ? fopen(name, "a") : NULL;
    if (file) {
        fprintf(file, "%ld\n", calls);
        fclose(file);
    }
}
