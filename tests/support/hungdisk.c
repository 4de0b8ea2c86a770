/* Preloaded into a node: a disk that stands still. fdatasync and fsync wait for as long as the file HUNG_DISK is there;
   with HUNG_PART only those of files whose path has that text in it. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int concerned(int fd) {
    const char *part = getenv("HUNG_PART");
    char link[64], path[4096];
    ssize_t length;
    if (part == NULL) return 1;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    length = readlink(link, path, sizeof path - 1);
    path[length > 0 ? length : 0] = 0;
    return strstr(path, part) != NULL;
}

static void wait_for_the_disk(int fd) {
    const char *file = getenv("HUNG_DISK");
    if (!concerned(fd)) return;
    while (file != NULL && access(file, F_OK) == 0) usleep(1000);
}

int fdatasync(int fd) {
    int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, "fdatasync");
    wait_for_the_disk(fd);
    return real(fd);
}

int fsync(int fd) {
    int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, "fsync");
    wait_for_the_disk(fd);
    return real(fd);
}
