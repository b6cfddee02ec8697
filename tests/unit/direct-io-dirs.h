/*
 * Directories for the tests of direct I/O: real file systems, if there are any
 *
 * To test mounted file systems, set these environment variables to paths
 * separated by colons: QDIO_TEST_DIRS (the last part of each path is the type
 * of the file system), QDIO_TEST_SMALL_DIRS (of a few MiB each),
 * QDIO_TEST_REFUSE_DIRS (without direct I/O, as reported by statx) and
 * QDIO_TEST_BLOCKDEVS (devices that may be overwritten).  Without them the
 * tests run only in the directory for temporary files.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef TESTS_DIRECT_IO_DIRS_H
#define TESTS_DIRECT_IO_DIRS_H

/* Split the environment variable @name; empty if it is unset. */
static inline char **direct_io_test_list(const char *name)
{
    const char *value = g_getenv(name);

    return g_strsplit(value ?: "", ":", 0);
}

/* Directories for ordinary test files, at least one. */
static inline char **direct_io_test_dirs(void)
{
    char **dirs = direct_io_test_list("QDIO_TEST_DIRS");

    if (!dirs[0]) {
        g_strfreev(dirs);
        dirs = g_new0(char *, 2);
        dirs[0] = g_strdup(g_get_tmp_dir());
    }
    return dirs;
}

/* Make an empty file in @dir, open for reading and writing plus @flags. */
static inline int direct_io_test_file(const char *dir, int flags, char **path)
{
    char *name = g_strdup_printf("%s/direct-io-test.XXXXXX", dir);
    int fd = g_mkstemp_full(name, O_RDWR | flags, 0600);

    if (path) {
        *path = name;
    } else {
        if (fd >= 0) {
            unlink(name);
        }
        g_free(name);
    }
    return fd;
}

#endif /* TESTS_DIRECT_IO_DIRS_H */
