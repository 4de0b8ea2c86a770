/* Preloaded into a node: keeps a second copy of its data directory that holds only what was synced.
 *
 * After each fsync or fdatasync of a file under POWERCUT_ROOT its bytes are copied to POWERCUT_COPY/<inode>; after each
 * fsync of a directory its entries are listed in POWERCUT_COPY/<inode>.dir. The test builds from these the directory
 * that a power cut would have left at worst, and starts a node on it. The copy is made before the caller learns that
 * the sync is done, so everything the caller may rely on is in it.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static void fail(const char *what) {
    perror(what);
    abort();
}

static void copy_file(int fd, const char *target) {
    static char buffer[1 << 16];
    char temporary[8192];
    off_t at = 0;
    ssize_t n;
    snprintf(temporary, sizeof temporary, "%s.tmp", target);
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    int in = open(path, O_RDONLY | O_CLOEXEC); /* the caller's descriptor may be write-only */
    int out = open(temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (in < 0 || out < 0) fail("powercut: open");
    while ((n = pread(in, buffer, sizeof buffer, at)) > 0) {
        if (write(out, buffer, (size_t)n) != n) fail("powercut: write");
        at += n;
    }
    if (n < 0) fail("powercut: read");
    close(in);
    close(out);
    if (rename(temporary, target) != 0) fail("powercut: rename");
}

static void list_directory(const char *path, const char *target) {
    char temporary[8192];
    snprintf(temporary, sizeof temporary, "%s.tmp", target);
    FILE *out = fopen(temporary, "we");
    DIR *directory = opendir(path);
    if (out == NULL || directory == NULL) fail("powercut: directory");
    for (struct dirent *entry; (entry = readdir(directory)) != NULL;)
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
            fprintf(out, "%lu %s\n", (unsigned long)entry->d_ino, entry->d_name);
    closedir(directory);
    fclose(out);
    if (rename(temporary, target) != 0) fail("powercut: rename");
}

static void remember(int fd) {
    const char *root = getenv("POWERCUT_ROOT"), *copy = getenv("POWERCUT_COPY");
    char link[64], path[4096], target[4096];
    struct stat status;
    if (root == NULL || copy == NULL || fstat(fd, &status) != 0) return;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof path - 1);
    if (n < 0) return;
    path[n] = 0;
    if (strncmp(path, root, strlen(root)) != 0) return;
    pthread_mutex_lock(&lock);
    if (S_ISDIR(status.st_mode)) {
        snprintf(target, sizeof target, "%s/%lu.dir", copy, (unsigned long)status.st_ino);
        list_directory(path, target);
    } else {
        snprintf(target, sizeof target, "%s/%lu", copy, (unsigned long)status.st_ino);
        copy_file(fd, target);
    }
    pthread_mutex_unlock(&lock);
}

static int call(const char *name, int fd) {
    int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, name);
    int result = real(fd);
    if (result == 0) remember(fd);
    return result;
}

int fsync(int fd) { return call("fsync", fd); }
int fdatasync(int fd) { return call("fdatasync", fd); }
