/* The file seam: every system call that reads or writes goes through one gate, where a test can make it
 * fail. */
#include "io.h"
#include "alloc.h"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { WRITE_BUFFER = 1 << 18 };

static _Atomic int64_t n_calls, countdown_left;
static atomic_int fails_with;
static atomic_bool fails_for_ever;

int64_t io_fail_after(int64_t countdown, int errno_value, bool for_ever) {
    atomic_store(&countdown_left, countdown);
    atomic_store(&fails_with, errno_value);
    atomic_store(&fails_for_ever, for_ever);
    return atomic_exchange(&n_calls, 0);
}

/* True when a test wants this call to fail; errno is then set. */
static bool denied(void) {
    atomic_fetch_add(&n_calls, 1);
    int64_t left = atomic_load(&countdown_left);
    if (left <= 0) return false;
    if (left > 1) {
        atomic_fetch_sub(&countdown_left, 1);
        return false;
    }
    if (!atomic_load(&fails_for_ever)) atomic_store(&countdown_left, 0);
    errno = atomic_load(&fails_with);
    return true;
}

static bool fail(Error *error, const char *path, const char *expected) {
    ErrorCode code = errno == ENOENT || errno == EACCES || errno == ENOTDIR || errno == EISDIR
                         ? ERROR_BAD_INPUT
                         : ERROR_FAILED;
    return error_set(error, code, "%s: expected %s: got \"%s\"", path, expected, strerror(errno));
}

/* ---- reading ---- */
bool io_open(IoFile *file, const char *path, Error *error) {
    *file = (IoFile){.fd = -1};
    int fd = denied() ? -1 : open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) return fail(error, path, "a readable file");
    struct stat about;
    if (denied() || fstat(fd, &about) != 0) {
        fail(error, path, "a readable file");
        close(fd);
        return false;
    }
    if (!S_ISREG(about.st_mode)) {
        close(fd);
        return error_set(error, ERROR_BAD_INPUT, "%s: expected a regular file: got %s", path,
                         S_ISDIR(about.st_mode) ? "a folder" : "a special file");
    }
    *file = (IoFile){fd, (uint64_t)about.st_size, mem_copy_text(path, strlen(path))};
    if (file->path) return true;
    close(fd);
    file->fd = -1;
    return error_out_of_memory(error, path, strlen(path) + 1);
}

bool io_read_at(const IoFile *file, uint64_t offset, void *to, size_t n_bytes, Error *error) {
    char *at = to;
    while (n_bytes) {
        ssize_t n =
            denied() ? -1 : pread(file->fd, at, n_bytes < (1u << 30) ? n_bytes : 1u << 30, (off_t)offset);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) {
            fail(error, file->path, "to read it");
            if (error->code == ERROR_BAD_INPUT) error->code = ERROR_FAILED;
            return false;
        }
        if (n == 0)
            return error_set(error, ERROR_BAD_INPUT,
                             "%s: expected %zu more bytes at offset %llu: got the end of the file",
                             file->path, n_bytes, (unsigned long long)offset);
        at += n;
        offset += (uint64_t)n;
        n_bytes -= (size_t)n;
    }
    return true;
}

void io_close(IoFile *file) {
    if (file->fd >= 0) close(file->fd);
    mem_free(file->path);
    *file = (IoFile){.fd = -1};
}

char *io_read_all(const char *path, size_t max_bytes, size_t *n_bytes, Error *error) {
    IoFile file;
    if (!io_open(&file, path, error)) return NULL;
    char *bytes = NULL;
    if (file.n_bytes > max_bytes) {
        error_set(error, ERROR_BAD_INPUT, "%s: expected at most %zu bytes: got %llu", path, max_bytes,
                  (unsigned long long)file.n_bytes);
        goto done;
    }
    bytes = mem_alloc((size_t)file.n_bytes + 1);
    if (!bytes) {
        error_out_of_memory(error, path, file.n_bytes + 1);
        goto done;
    }
    if (!io_read_at(&file, 0, bytes, (size_t)file.n_bytes, error)) {
        mem_free(bytes);
        bytes = NULL;
        goto done;
    }
    bytes[file.n_bytes] = '\0';
    *n_bytes = (size_t)file.n_bytes;
done:
    io_close(&file);
    return bytes;
}

char *io_read_stream(int fd, const char *name, size_t max_bytes, size_t *n_bytes, Error *error) {
    size_t capacity = 1 << 16, length = 0;
    char *bytes = mem_alloc(capacity + 1);
    if (!bytes) {
        error_out_of_memory(error, name, capacity + 1);
        return NULL;
    }
    for (;;) {
        ssize_t n = denied() ? -1 : read(fd, bytes + length, capacity - length);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) {
            fail(error, name, "to read it");
            break;
        }
        length += (size_t)n;
        if (length > max_bytes) {
            error_set(error, ERROR_BAD_INPUT, "%s: expected at most %zu bytes: got more", name, max_bytes);
            break;
        }
        if (n == 0) {
            bytes[length] = '\0';
            *n_bytes = length;
            return bytes;
        }
        if (length < capacity) continue;
        char *larger = mem_resize(bytes, 2 * capacity + 1, 1);
        if (!larger) {
            error_out_of_memory(error, name, 2 * capacity + 1);
            break;
        }
        bytes = larger;
        capacity *= 2;
    }
    mem_free(bytes);
    return NULL;
}

bool io_exists(const char *path) {
    struct stat about;
    return stat(path, &about) == 0;
}

bool io_is_folder(const char *path) {
    struct stat about;
    return stat(path, &about) == 0 && S_ISDIR(about.st_mode);
}

bool io_is_same_file(const char *a, const char *b) {
    struct stat x, y;
    return stat(a, &x) == 0 && stat(b, &y) == 0 && x.st_dev == y.st_dev && x.st_ino == y.st_ino;
}

static int by_name(const void *a, const void *b) { return strcmp(*(char *const *)a, *(char *const *)b); }

bool io_list(const char *folder, char ***names, size_t *n_names, Error *error) {
    *names = NULL;
    *n_names = 0;
    DIR *open_folder = denied() ? NULL : opendir(folder);
    if (!open_folder) return fail(error, folder, "a readable folder");
    size_t capacity = 0;
    bool fine = true;
    for (;;) {
        errno = 0;
        struct dirent *entry = readdir(open_folder);
        if (!entry && errno != 0) fine = fail(error, folder, "to read the folder");
        if (!entry) break;
        if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, "..")) continue;
        if (*n_names == capacity) {
            char **larger = mem_resize(*names, capacity ? 2 * capacity : 16, sizeof **names);
            if (!larger) {
                fine = error_out_of_memory(error, folder, (2 * capacity + 16) * sizeof **names);
                break;
            }
            *names = larger;
            capacity = capacity ? 2 * capacity : 16;
        }
        char *name = mem_copy_text(entry->d_name, strlen(entry->d_name));
        if (!name) {
            fine = error_out_of_memory(error, folder, strlen(entry->d_name) + 1);
            break;
        }
        (*names)[(*n_names)++] = name;
    }
    closedir(open_folder);
    if (fine) {
        if (*n_names) qsort(*names, *n_names, sizeof **names, by_name);
        return true;
    }
    for (size_t i = 0; i < *n_names; i++) mem_free((*names)[i]);
    mem_free(*names);
    *names = NULL;
    *n_names = 0;
    return false;
}

char *io_join(const char *folder, const char *name) {
    if (name[0] == '/') return mem_copy_text(name, strlen(name));
    size_t n = strlen(folder) + strlen(name) + 2;
    char *path = mem_alloc(n);
    if (path)
        snprintf(path, n, "%s%s%s", folder, folder[0] && folder[strlen(folder) - 1] == '/' ? "" : "/", name);
    return path;
}

char *io_folder_of(const char *path) {
    const char *slash = strrchr(path, '/');
    if (!slash) return mem_copy_text(".", 1);
    return mem_copy_text(path, slash == path ? 1 : (size_t)(slash - path));
}

const char *io_last_name(const char *path) {
    const char *slash = strrchr(path, '/');
    return slash && slash[1] ? slash + 1 : path;
}

bool io_is_plain_name(const char *name) {
    return *name && *name != '.' && !strchr(name, '/') && strlen(name) < 200;
}

/* ---- writing ---- */
bool io_writer_open(IoWriter *writer, const char *path, Error *error) {
    *writer = (IoWriter){.fd = -1};
    size_t n = strlen(path) + 32;
    writer->path = mem_copy_text(path, strlen(path));
    writer->partial_path = mem_alloc(n);
    writer->buffer = mem_alloc(WRITE_BUFFER);
    if (!writer->path || !writer->partial_path || !writer->buffer) {
        error_out_of_memory(error, path, n + WRITE_BUFFER);
        io_writer_abandon(writer);
        return false;
    }
    snprintf(writer->partial_path, n, "%s.partial-%ld", path, (long)getpid());
    unlink(writer->partial_path); /* left by a killed process with our number */
    writer->fd = denied() ? -1 : open(writer->partial_path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (writer->fd >= 0) return true;
    fail(error, path, "a place to write");
    mem_free(writer->partial_path);
    writer->partial_path = NULL;
    io_writer_abandon(writer);
    return false;
}

/* All bytes to a descriptor. A disk that a test has filled takes half of the first write. */
static bool write_fully(int fd, const char *path, const char *from, size_t n_bytes, Error *error) {
    while (n_bytes) {
        ssize_t n = -1;
        if (!denied()) {
            n = write(fd, from, n_bytes);
        } else if (errno == ENOSPC && n_bytes > 1) {
            if (write(fd, from, n_bytes / 2) >= 0) errno = ENOSPC;
        }
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) {
            fail(error, path, "to write it");
            error->code = ERROR_FAILED;
            return false;
        }
        from += n;
        n_bytes -= (size_t)n;
    }
    return true;
}

static bool flush(IoWriter *writer, Error *error) {
    bool fine = write_fully(writer->fd, writer->path, writer->buffer, writer->n_buffered, error);
    writer->n_buffered = 0;
    return fine;
}

bool io_writer_put(IoWriter *writer, const void *from, size_t n_bytes, Error *error) {
    writer->n_written += n_bytes;
    if (writer->n_buffered + n_bytes > WRITE_BUFFER && !flush(writer, error)) return false;
    if (n_bytes > WRITE_BUFFER) return write_fully(writer->fd, writer->path, from, n_bytes, error);
    if (n_bytes) memcpy(writer->buffer + writer->n_buffered, from, n_bytes);
    writer->n_buffered += n_bytes;
    return true;
}

/* Makes a finished rename survive a power cut. */
static bool sync_folder(const char *path, Error *error) {
    char *folder = io_folder_of(path);
    if (!folder) return error_out_of_memory(error, path, strlen(path));
    int fd = denied() ? -1 : open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    bool fine = fd >= 0 && !denied() && fsync(fd) == 0;
    if (!fine) fail(error, folder, "to sync the folder");
    if (fd >= 0) close(fd);
    mem_free(folder);
    return fine;
}

bool io_writer_finish(IoWriter *writer, Error *error) {
    bool fine = flush(writer, error);
    if (fine && (denied() || fsync(writer->fd) != 0)) fine = fail(error, writer->path, "to sync it");
    int fd = writer->fd;
    writer->fd = -1;
    if (close(fd) != 0 && fine) fine = fail(error, writer->path, "to close it");
    if (fine && (denied() || rename(writer->partial_path, writer->path) != 0))
        fine = fail(error, writer->path, "to rename it into place");
    if (fine) {
        fine = sync_folder(writer->path, error);
        mem_free(writer->partial_path);
        writer->partial_path = NULL;
    }
    io_writer_abandon(writer);
    return fine;
}

void io_writer_abandon(IoWriter *writer) {
    if (writer->fd >= 0 && writer->path) close(writer->fd);
    if (writer->partial_path) unlink(writer->partial_path);
    mem_free(writer->path);
    mem_free(writer->partial_path);
    mem_free(writer->buffer);
    *writer = (IoWriter){.fd = -1};
}

bool io_write_all(const char *path, const void *from, size_t n_bytes, Error *error) {
    IoWriter writer;
    if (!io_writer_open(&writer, path, error)) return false;
    if (io_writer_put(&writer, from, n_bytes, error)) return io_writer_finish(&writer, error);
    io_writer_abandon(&writer);
    return false;
}

bool io_append(const char *path, const void *from, size_t n_bytes, Error *error) {
    int fd = denied() ? -1 : open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
    if (fd < 0) return fail(error, path, "a place to write");
    bool fine = write_fully(fd, path, from, n_bytes, error);
    close(fd);
    return fine;
}

bool io_make_folders(const char *path, Error *error) {
    char *part = mem_copy_text(path, strlen(path));
    if (!part) return error_out_of_memory(error, path, strlen(path) + 1);
    bool fine = part[0] ? true : error_set(error, ERROR_BAD_INPUT, "expected a folder's name: got none");
    for (char *at = part + 1; fine; at++) {
        char end = *at;
        if (end != '/' && end != '\0') continue;
        *at = '\0';
        if (!io_is_folder(part) && (denied() || (mkdir(part, 0777) != 0 && errno != EEXIST)))
            fine = fail(error, part, "to make the folder");
        else if (!io_is_folder(part))
            fine = error_set(error, ERROR_BAD_INPUT, "%s: expected a folder: got a file", part);
        *at = end;
        if (end == '\0') break;
    }
    mem_free(part);
    return fine;
}

bool io_remove(const char *path, Error *error) {
    if (!denied() && (unlink(path) == 0 || errno == ENOENT)) return true;
    return fail(error, path, "to remove it");
}
