/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_TESTS_CUFILE_STANDIN_H
#define MOEC_TESTS_CUFILE_STANDIN_H

/*
 * What a test says to cufile_standin.c, and what that saw. The library exports
 * one `cufile_standin`: dlopen it by the path that the plug-in gets.
 */

typedef struct cufile_standin {
    int open_error; /* of the driver; 0: it opens */
    int no_nvidia_fs;
    int file_error;  /* of registering a file */
    int fail_from;   /* read: from this one on -5 with EIO; 0: never */
    int refuse_from; /* the same with an error of cuFile's own */
    int short_from;  /* from this one on half of what is asked */
    int corrupt;     /* read: one bit of what it brings is wrong */
    /* seen */
    int n_opened, n_reads, n_unaligned, n_unregistered;
    int n_files, n_files_now, n_regions, n_regions_now;
} cufile_standin_t;

#endif
