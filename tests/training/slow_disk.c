/* A disk of SLOW_DISK_BYTES a second at SLOW_DISK, for programs that are started with this in LD_PRELOAD: whoever writes
   to a file below it waits for his turn, and for as long as such a disk would take. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

static pthread_mutex_t turn = PTHREAD_MUTEX_INITIALIZER;

static int is_slow(int descriptor) {
  char link[64], path[4096];
  const char *folder = getenv("SLOW_DISK");
  snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
  ssize_t length = readlink(link, path, sizeof path - 1);
  if (!folder || length < 0) return 0;
  path[length] = 0;
  return strncmp(path, folder, strlen(folder)) == 0;
}

static void take(int descriptor, ssize_t bytes) {
  if (bytes <= 0 || !is_slow(descriptor)) return;
  double seconds = bytes / atof(getenv("SLOW_DISK_BYTES"));
  struct timespec time = {(time_t)seconds, (long)((seconds - (time_t)seconds) * 1e9)};
  pthread_mutex_lock(&turn);
  nanosleep(&time, NULL);
  pthread_mutex_unlock(&turn);
}

#define SLOW(name, parameters, arguments)                                     \
  ssize_t name parameters {                                                   \
    static ssize_t(*next) parameters;                                         \
    if (!next) next = (ssize_t(*) parameters)dlsym(RTLD_NEXT, #name);         \
    ssize_t done = next arguments;                                            \
    take(descriptor, done);                                                   \
    return done;                                                              \
  }

SLOW(write, (int descriptor, const void *from, size_t bytes), (descriptor, from, bytes))
SLOW(pwrite, (int descriptor, const void *from, size_t bytes, off_t at), (descriptor, from, bytes, at))
SLOW(pwrite64, (int descriptor, const void *from, size_t bytes, off64_t at), (descriptor, from, bytes, at))
SLOW(writev, (int descriptor, const struct iovec *parts, int count), (descriptor, parts, count))
SLOW(pwritev, (int descriptor, const struct iovec *parts, int count, off_t at), (descriptor, parts, count, at))
SLOW(pwritev64, (int descriptor, const struct iovec *parts, int count, off64_t at), (descriptor, parts, count, at))
