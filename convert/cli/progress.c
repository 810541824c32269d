/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Progress on stderr and the two stop signals. The first SIGINT or SIGTERM
 * asks the library to stop; the second one kills, because the handler is gone
 * after the first: whoever presses twice means it.
 */
#include "progress.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#include "print.h"

/* Seconds between two drawings. A bar at 6 Hz looks smooth; lines are for
 * logs, and logs are kept. */
#define BAR_SECONDS   (1.0 / 6.0)
#define JSON_SECONDS  1.0
#define PLAIN_SECONDS 5.0

volatile sig_atomic_t moec_cli_signal;

static void on_signal(int number)
{
    moec_cli_signal = number;
}

static void catch_signal(int number)
{
    struct sigaction old, act;
    sigset_t mask;
    /* nohup and shells' background jobs ignore SIGINT on purpose. */
    if (sigaction(number, NULL, &old) != 0 || old.sa_handler == SIG_IGN)
        return;
    memset(&act, 0, sizeof(act));
    act.sa_handler = on_signal;
    act.sa_flags = (int)(SA_RESETHAND | SA_RESTART);
    (void)sigemptyset(&act.sa_mask);
    (void)sigaction(number, &act, NULL);
    /* A parent that had it blocked would make us impossible to stop. */
    (void)sigemptyset(&mask);
    (void)sigaddset(&mask, number);
    (void)pthread_sigmask(SIG_UNBLOCK, &mask, NULL);
}

static double now(void)
{
    struct timespec t = {0, 0};
    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

void moec_cli_progress_begin(moec_cli_progress *p, const moec_cli *cli)
{
    const char *term = getenv("TERM");
    memset(p, 0, sizeof(*p));
    p->label = cli->cmd->name;
    p->mode = cli->args.progress;
    if (p->mode == MOEC_CHOICE_PROGRESS_AUTO) {
        bool bar = !cli->args.quiet && isatty(STDERR_FILENO) == 1 &&
                   term != NULL && strcmp(term, "dumb") != 0;
        p->mode = bar ? MOEC_CHOICE_PROGRESS_BAR : MOEC_CHOICE_PROGRESS_NONE;
    }
    p->begin = now();
    p->last = p->begin;
    catch_signal(SIGINT);
    catch_signal(SIGTERM);
}

static double rate_of(const moec_cli_progress *p, double at)
{
    return at > p->begin ? (double)p->done / (at - p->begin) : 0.0;
}

/* "1:02:03" or "0:12". */
static void clock_text(char buf[24], double seconds)
{
    uint64_t s = seconds < 1e9 ? (uint64_t)(seconds + 0.5) : 999999999;
    if (s >= 3600)
        (void)snprintf(buf, 24, "%" PRIu64 ":%02u:%02u", s / 3600,
                       (unsigned)(s / 60 % 60), (unsigned)(s % 60));
    else
        (void)snprintf(buf, 24, "%u:%02u", (unsigned)(s / 60),
                       (unsigned)(s % 60));
}

static void describe(const moec_cli_progress *p, double at, char *buf, size_t n)
{
    char done[24], total[24], eta[24];
    double rate = rate_of(p, at);
    double left = p->total > p->done ? (double)(p->total - p->done) : 0.0;
    unsigned percent =
        p->total > 0 ? (unsigned)(100.0 * (double)p->done / (double)p->total)
                     : 100u;
    clock_text(eta, rate > 0.0 ? left / rate : 0.0);
    (void)snprintf(buf, n, "%3u%%  %s of %s  %.2f GB/s  ETA %s", percent,
                   moec_cli_size(done, p->done), moec_cli_size(total, p->total),
                   rate / 1e9, rate > 0.0 ? eta : "-");
}

static void draw_bar(moec_cli_progress *p, double at)
{
    enum { MOST = 30 };
    struct winsize w = {0};
    char text[120], bar[MOST + 1];
    describe(p, at, text, sizeof(text));
    size_t columns = 80;
    if (ioctl(STDERR_FILENO, TIOCGWINSZ, &w) == 0 && w.ws_col > 0)
        columns = w.ws_col;
    size_t taken = strlen(p->label) + strlen(text) + 6;
    size_t width = columns > taken ? columns - taken : 0;
    if (width > MOST)
        width = MOST;
    size_t full =
        p->total > 0
            ? (size_t)((double)width * (double)p->done / (double)p->total)
            : width;
    for (size_t i = 0; i < width; i++)
        bar[i] = i < full ? '#' : '.';
    bar[width] = '\0';
    (void)fprintf(stderr, "\r%s [%s] %.*s\033[K", p->label, bar,
                  (int)sizeof(text), text);
    (void)fflush(stderr);
    p->drawn = true;
}

static void draw_json(const moec_cli_progress *p, double at)
{
    (void)fprintf(stderr,
                  "{\"schema\": \"moec.progress/1\", \"command\": \"%s\", "
                  "\"done\": %" PRIu64 ", \"total\": %" PRIu64
                  ", \"seconds\": %.3f, \"bytes_per_second\": %.0f}\n",
                  p->label, p->done, p->total, at - p->begin, rate_of(p, at));
}

static void draw(moec_cli_progress *p, double at)
{
    char text[120];
    p->last = at;
    if (p->mode == MOEC_CHOICE_PROGRESS_BAR) {
        draw_bar(p, at);
    } else if (p->mode == MOEC_CHOICE_PROGRESS_JSON) {
        draw_json(p, at);
    } else if (p->mode == MOEC_CHOICE_PROGRESS_PLAIN) {
        describe(p, at, text, sizeof(text));
        moec_cli_line(stderr, "%s %s", p->label, text);
    }
}

int moec_cli_progress_step(void *ctx, uint64_t done, uint64_t total)
{
    moec_cli_progress *p = ctx;
    double at = now();
    double wait = p->mode == MOEC_CHOICE_PROGRESS_BAR    ? BAR_SECONDS
                  : p->mode == MOEC_CHOICE_PROGRESS_JSON ? JSON_SECONDS
                                                         : PLAIN_SECONDS;
    p->done = done;
    p->total = total;
    if (at - p->last >= wait)
        draw(p, at);
    return moec_cli_signal != 0;
}

void moec_cli_progress_end(moec_cli_progress *p)
{
    if (p->drawn) {
        (void)fputs("\r\033[K", stderr);
        (void)fflush(stderr);
    }
    if (p->total > 0 && p->mode != MOEC_CHOICE_PROGRESS_BAR)
        draw(p, now());
}
