/* SPDX-License-Identifier: Apache-2.0 */
/* What this machine can do at most, measured beside the peers so that ratios come from one run.
 *
 *   limits read   FILE MODE THREADS BLOCK_KIB QD      MODE: uring | direct | buffered | cold
 *   limits ranges LIST MODE THREADS BLOCK_KIB QD      LIST: lines "offset length path"
 *   limits write  FILE BYTES MODE BLOCK_KIB QD        MODE: uring | buffered, fsync included
 *   limits copy   DST BLOCK_KIB QD SRC...             O_DIRECT copy, reads and writes overlapped, fsync included
 *   limits memory                                     memcpy, read, first touch; 1 and 2 threads
 *   limits sha256                                     OpenSSL, 1 and 2 threads
 *
 * One JSON line per figure. Every destination is touched before the clock starts. `uring` and `direct`
 * use O_DIRECT; `buffered` goes through the page cache; `cold` evicts the file first (after the destination
 * is touched, so that the cache gets back the pages just freed: fresh ones would measure the hypervisor).
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/io_uring.h>
#include <openssl/evp.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define ALIGN 4096ul
#define MIB (1ul << 20)

struct op { int fd; uint64_t off, len; char *mem; };

static double now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static double cpu(void)
{
	struct rusage r;
	getrusage(RUSAGE_SELF, &r);
	return (double)(r.ru_utime.tv_sec + r.ru_stime.tv_sec) + 1e-6 * (double)(r.ru_utime.tv_usec + r.ru_stime.tv_usec);
}

static void die(const char *what)
{
	fprintf(stderr, "limits: %s: %s\n", what, strerror(errno));
	exit(1);
}

static char *area(size_t n, int touch)
{
	char *p = mmap(0, n, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (p == MAP_FAILED)
		die("mmap");
	madvise(p, n, MADV_HUGEPAGE);
	if (touch)
		memset(p, 0x5a, n);
	return p;
}

/* ---- io_uring, raw ---- */

struct ring {
	int fd;
	unsigned *sq_tail, *sq_mask, *sq_array, *cq_head, *cq_tail, *cq_mask;
	struct io_uring_sqe *sqe;
	struct io_uring_cqe *cqe;
};

static void ring_open(struct ring *r, unsigned depth)
{
	struct io_uring_params p = { 0 };
	r->fd = (int)syscall(SYS_io_uring_setup, depth, &p);
	if (r->fd < 0)
		die("io_uring_setup");
	int prot = PROT_READ | PROT_WRITE, flags = MAP_SHARED | MAP_POPULATE;
	char *sq = mmap(0, p.sq_off.array + p.sq_entries * 4, prot, flags, r->fd, IORING_OFF_SQ_RING);
	char *cq = mmap(0, p.cq_off.cqes + p.cq_entries * sizeof(struct io_uring_cqe), prot, flags, r->fd, IORING_OFF_CQ_RING);
	r->sqe = mmap(0, p.sq_entries * sizeof(struct io_uring_sqe), prot, flags, r->fd, IORING_OFF_SQES);
	if (sq == MAP_FAILED || cq == MAP_FAILED || (void *)r->sqe == MAP_FAILED)
		die("io_uring mmap");
	r->sq_tail = (void *)(sq + p.sq_off.tail);
	r->sq_mask = (void *)(sq + p.sq_off.ring_mask);
	r->sq_array = (void *)(sq + p.sq_off.array);
	r->cq_head = (void *)(cq + p.cq_off.head);
	r->cq_tail = (void *)(cq + p.cq_off.tail);
	r->cq_mask = (void *)(cq + p.cq_off.ring_mask);
	r->cqe = (void *)(cq + p.cq_off.cqes);
}

static void run_uring(struct op *ops, size_t n, unsigned depth, int opcode)
{
	struct ring r;
	ring_open(&r, depth);
	size_t next = 0, done = 0;
	unsigned inflight = 0;
	while (done < n) {
		unsigned tail = *r.sq_tail, add = 0;
		for (; inflight < depth && next < n; next++, inflight++, add++, tail++) {
			unsigned i = tail & *r.sq_mask;
			struct io_uring_sqe *s = &r.sqe[i];
			memset(s, 0, sizeof *s);
			s->opcode = (uint8_t)opcode;
			s->fd = ops[next].fd;
			s->off = ops[next].off;
			s->addr = (uintptr_t)ops[next].mem;
			s->len = (unsigned)ops[next].len;
			s->user_data = next;
			r.sq_array[i] = i;
		}
		__atomic_store_n(r.sq_tail, tail, __ATOMIC_RELEASE);
		if (syscall(SYS_io_uring_enter, r.fd, add, 1, IORING_ENTER_GETEVENTS, NULL, 0) < 0 && errno != EINTR)
			die("io_uring_enter");
		unsigned head = *r.cq_head;
		for (; head != __atomic_load_n(r.cq_tail, __ATOMIC_ACQUIRE); head++, inflight--, done++) {
			struct io_uring_cqe *c = &r.cqe[head & *r.cq_mask];
			struct op *o = &ops[c->user_data];
			if (c->res < 0) {
				errno = -c->res;
				die("read or write");
			}
			if ((uint64_t)c->res < o->len) {               /* end of file, or a short one: finish it plainly */
				ssize_t m = pread(o->fd, o->mem + c->res, o->len - (uint64_t)c->res, (off_t)(o->off + (uint64_t)c->res));
				if (m < 0)
					die("pread");
			}
		}
		__atomic_store_n(r.cq_head, head, __ATOMIC_RELEASE);
	}
	close(r.fd);
}

struct share { struct op *ops; size_t n, *next; };

static void *preads(void *arg)
{
	struct share *s = arg;
	for (size_t i; (i = __atomic_fetch_add(s->next, 1, __ATOMIC_RELAXED)) < s->n;) {
		struct op *o = &s->ops[i];
		for (uint64_t d = 0; d < o->len;) {
			ssize_t m = pread(o->fd, o->mem + d, o->len - d, (off_t)(o->off + d));
			if (m < 0)
				die("pread");
			if (m == 0)
				break;                                     /* the aligned tail past the end of the file */
			d += (uint64_t)m;
		}
	}
	return NULL;
}

static void run_preads(struct op *ops, size_t n, int threads)
{
	pthread_t t[64];
	size_t next = 0;
	struct share s = { ops, n, &next };
	for (int i = 0; i < threads; i++)
		pthread_create(&t[i], NULL, preads, &s);
	for (int i = 0; i < threads; i++)
		pthread_join(t[i], NULL);
}

/* ---- disk ---- */

static void disk(const char *what, char **arg)
{
	const char *mode = arg[1];
	int threads = atoi(arg[2]), cold = !strcmp(mode, "cold"), direct = strcmp(mode, "buffered") && !cold;
	uint64_t block = strtoull(arg[3], 0, 10) * 1024, total = 0, need = 0;
	unsigned depth = (unsigned)atoi(arg[4]);
	struct op *ops = NULL;
	size_t n = 0, cap = 0;
	char line[4096 + 64], path[4096], last[4096] = "";
	int fd = -1, ranges = !strcmp(what, "ranges");
	FILE *list = ranges ? fopen(arg[0], "r") : NULL;
	if (ranges && !list)
		die(arg[0]);
	for (;;) {
		uint64_t off = 0, len = 0;
		if (ranges) {
			if (!fgets(line, sizeof line, list))
				break;
			if (sscanf(line, "%lu %lu %4095[^\n]", &off, &len, path) != 3)
				continue;
		} else if (fd < 0) {
			struct stat st;
			snprintf(path, sizeof path, "%s", arg[0]);
			if (stat(path, &st))
				die(path);
			len = (uint64_t)st.st_size / ALIGN * ALIGN;
			if (len > 2048 * MIB)
				len = 2048 * MIB;
		} else {
			break;
		}
		if (strcmp(path, last)) {
			fd = open(path, O_RDONLY | (direct ? O_DIRECT : 0));
			if (fd < 0)
				die(path);
			strcpy(last, path);
		}
		need += len;
		uint64_t a = direct ? off / ALIGN * ALIGN : off, e = off + len;
		if (direct)
			e = (e + ALIGN - 1) / ALIGN * ALIGN;
		for (; a < e; a += block) {
			if (n == cap)
				ops = realloc(ops, (cap = cap ? cap * 2 : 1024) * sizeof *ops);
			uint64_t m = e - a < block ? e - a : block;
			ops[n++] = (struct op){ fd, a, m, (char *)total };
			total += (m + ALIGN - 1) / ALIGN * ALIGN;
		}
	}
	char *mem = area(total, 1);
	for (size_t i = 0; i < n; i++)
		ops[i].mem = mem + (uintptr_t)ops[i].mem;
	for (size_t i = 0; cold && i < n; i++)
		if (i == 0 || ops[i].fd != ops[i - 1].fd)
			posix_fadvise(ops[i].fd, 0, 0, POSIX_FADV_DONTNEED);
	double t = now(), c = cpu();
	if (!strcmp(mode, "uring"))
		run_uring(ops, n, depth, IORING_OP_READ);
	else
		run_preads(ops, n, threads);
	t = now() - t;
	printf("{\"figure\": \"%s\", \"mode\": \"%s\", \"threads\": %d, \"block_kib\": %lu, \"qd\": %u, \"bytes\": %lu, "
	       "\"seconds\": %.4f, \"gbps\": %.3f, \"cpu_seconds\": %.3f}\n",
	       what, mode, threads, block / 1024, depth, need, t, (double)need / t / 1e9, cpu() - c);
}

static void disk_write(char **arg)
{
	uint64_t bytes = strtoull(arg[1], 0, 10), block = strtoull(arg[3], 0, 10) * 1024, span = 64 * MIB;
	int direct = !strcmp(arg[2], "uring");
	unsigned depth = (unsigned)atoi(arg[4]);
	int fd = open(arg[0], O_WRONLY | O_CREAT | O_TRUNC | (direct ? O_DIRECT : 0), 0644);
	if (fd < 0)
		die(arg[0]);
	char *mem = area(span, 1);
	uint64_t x = 88172645463325252ull;
	for (uint64_t *w = (void *)mem; w < (uint64_t *)(void *)(mem + span); w++) {
		x ^= x << 13, x ^= x >> 7, x ^= x << 17;
		*w = x;
	}
	bytes = bytes / block * block;
	size_t n = bytes / block;
	struct op *ops = malloc(n * sizeof *ops);
	for (size_t i = 0; i < n; i++)
		ops[i] = (struct op){ fd, i * block, block, mem + i * block % span };
	double t = now(), c = cpu();
	if (direct) {
		if (fallocate(fd, 0, 0, (off_t)bytes))
			die("fallocate");
		run_uring(ops, n, depth, IORING_OP_WRITE);
	} else {
		for (size_t i = 0; i < n; i++)
			if (pwrite(fd, ops[i].mem, block, (off_t)ops[i].off) != (ssize_t)block)
				die("pwrite");
	}
	if (fsync(fd))
		die("fsync");
	t = now() - t;
	close(fd);
	unlink(arg[0]);
	printf("{\"figure\": \"write+fsync\", \"mode\": \"%s\", \"threads\": 1, \"block_kib\": %lu, \"qd\": %u, \"bytes\": %lu, "
	       "\"seconds\": %.4f, \"gbps\": %.3f, \"cpu_seconds\": %.3f}\n",
	       arg[2], block / 1024, depth, bytes, t, (double)bytes / t / 1e9, cpu() - c);
}

/* Copy files with `depth` blocks in flight: each slot reads, then writes, then takes the next block. */
static void disk_copy(int argc, char **arg)
{
	uint64_t block = strtoull(arg[1], 0, 10) * 1024, total = 0;
	unsigned depth = (unsigned)atoi(arg[2]);
	if (depth > 256)
		depth = 256;
	char *mem = area(block * depth, 1);
	double t = now(), c = cpu();
	for (int f = 3; f < argc; f++) {
		char path[4096];
		const char *name = strrchr(arg[f], '/');
		snprintf(path, sizeof path, "%s/%s", arg[0], name ? name + 1 : arg[f]);
		int in = open(arg[f], O_RDONLY | O_DIRECT), out = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_DIRECT, 0644);
		struct stat st;
		if (in < 0 || out < 0 || fstat(in, &st))
			die(arg[f]);
		uint64_t size = (uint64_t)st.st_size, whole = (size + ALIGN - 1) / ALIGN * ALIGN, next = 0;
		if (fallocate(out, 0, 0, (off_t)whole))
			die("fallocate");
		struct ring r;
		ring_open(&r, depth);
		struct { uint64_t off, len; int writing; } slot[256];
		unsigned inflight = 0, busy = 0, idle = 0, todo[256];
		for (unsigned i = 0; i < depth; i++)
			todo[idle++] = i, slot[i].writing = 1;
		while (next < whole || busy) {
			unsigned tail = *r.sq_tail, add = 0;
			while (idle) {
				unsigned i = todo[idle - 1];
				if (slot[i].writing == 1) {                /* free: start a read */
					if (next >= whole)
						break;
					slot[i].off = next;
					slot[i].len = whole - next < block ? whole - next : block;
					next += slot[i].len;
					busy++;
				}
				idle--;
				struct io_uring_sqe *s = &r.sqe[tail & *r.sq_mask];
				memset(s, 0, sizeof *s);
				s->opcode = slot[i].writing == 1 ? IORING_OP_READ : IORING_OP_WRITE;
				s->fd = slot[i].writing == 1 ? in : out;
				s->off = slot[i].off;
				s->addr = (uintptr_t)(mem + i * block);
				s->len = (unsigned)slot[i].len;
				s->user_data = i;
				slot[i].writing = slot[i].writing == 1 ? 0 : 3;
				r.sq_array[tail & *r.sq_mask] = tail & *r.sq_mask;
				tail++, add++, inflight++;
			}
			__atomic_store_n(r.sq_tail, tail, __ATOMIC_RELEASE);
			if (syscall(SYS_io_uring_enter, r.fd, add, inflight ? 1 : 0, IORING_ENTER_GETEVENTS, NULL, 0) < 0 && errno != EINTR)
				die("io_uring_enter");
			unsigned head = *r.cq_head;
			for (; head != __atomic_load_n(r.cq_tail, __ATOMIC_ACQUIRE); head++, inflight--) {
				struct io_uring_cqe *e = &r.cqe[head & *r.cq_mask];
				unsigned i = (unsigned)e->user_data;
				int eof = slot[i].writing == 0 && slot[i].off + slot[i].len > size;
				if (e->res < 0 || ((uint64_t)e->res < slot[i].len && !eof)) {
					errno = e->res < 0 ? -e->res : EIO;
					die("copy");
				}
				busy -= slot[i].writing == 3;
				slot[i].writing = slot[i].writing == 0 ? 2 : 1;    /* read done: write it; write done: free */
				todo[idle++] = i;
			}
			__atomic_store_n(r.cq_head, head, __ATOMIC_RELEASE);
			for (unsigned a = 0, b = 0; a < idle; a++)         /* writes last, so that they go first */
				if (slot[todo[a]].writing == 1) {
					unsigned x = todo[a];
					todo[a] = todo[b], todo[b++] = x;
				}
		}
		close(r.fd);
		if (ftruncate(out, st.st_size) || fsync(out))
			die("fsync");
		close(in);
		close(out);
		total += size;
	}
	t = now() - t;
	printf("{\"figure\": \"copy+fsync\", \"mode\": \"uring\", \"threads\": 1, \"block_kib\": %lu, \"qd\": %u, \"bytes\": %lu, "
	       "\"seconds\": %.4f, \"gbps\": %.3f, \"cpu_seconds\": %.3f}\n",
	       block / 1024, depth, total, t, (double)total / t / 1e9, cpu() - c);
}

/* ---- memory and digests ---- */

enum what { COPY, READ, TOUCH, SHA };

struct work { enum what what; char *a, *b; size_t n; int rounds; pthread_barrier_t *bar; double t0, t1; uint64_t sink; };

static uint64_t sum(const uint64_t *p, size_t n)
{
	uint64_t s0 = 0, s1 = 0, s2 = 0, s3 = 0;
	for (size_t i = 0; i + 32 <= n; i += 32)
		for (size_t j = 0; j < 8; j++)
			s0 += p[i + j], s1 += p[i + 8 + j], s2 += p[i + 16 + j], s3 += p[i + 24 + j];
	return s0 + s1 + s2 + s3;
}

static void *worker(void *arg)
{
	struct work *w = arg;
	unsigned char md[32];
	unsigned mdlen;
	pthread_barrier_wait(w->bar);
	w->t0 = now();
	for (int r = 0; r < w->rounds; r++) {
		if (w->what == COPY)
			memcpy(w->a, w->b, w->n);
		else if (w->what == READ)
			w->sink += sum((void *)w->a, w->n / 8);
		else if (w->what == TOUCH)
			memset(w->a, 1, w->n);
		else if (!EVP_Digest(w->a, w->n, md, &mdlen, EVP_sha256(), NULL))
			die("EVP_Digest");
	}
	w->t1 = now();
	return NULL;
}

static void bench(const char *name, enum what what, int threads, size_t n, int rounds)
{
	struct work w[2];
	pthread_t t[2];
	pthread_barrier_t bar;
	pthread_barrier_init(&bar, NULL, (unsigned)threads);
	for (int i = 0; i < threads; i++) {
		w[i] = (struct work){ what, area(n, what != TOUCH), what == COPY ? area(n, 1) : NULL, n, rounds, &bar, 0, 0, 0 };
		if (what == TOUCH)
			w[i].rounds = 1;
	}
	for (int i = 0; i < threads; i++)
		pthread_create(&t[i], NULL, worker, &w[i]);
	for (int i = 0; i < threads; i++)
		pthread_join(t[i], NULL);
	double a = w[0].t0, b = w[0].t1;
	for (int i = 1; i < threads; i++) {
		a = w[i].t0 < a ? w[i].t0 : a;
		b = w[i].t1 > b ? w[i].t1 : b;
	}
	double bytes = (double)n * w[0].rounds * threads;
	printf("{\"figure\": \"%s\", \"threads\": %d, \"bytes\": %.0f, \"seconds\": %.4f, \"gbps\": %.3f}\n",
	       name, threads, bytes, b - a, bytes / (b - a) / 1e9);
	for (int i = 0; i < threads; i++) {
		munmap(w[i].a, n);
		if (w[i].b)
			munmap(w[i].b, n);
	}
}

int main(int argc, char **argv)
{
	if (argc == 7 && (!strcmp(argv[1], "read") || !strcmp(argv[1], "ranges")))
		disk(argv[1], argv + 2);
	else if (argc == 7 && !strcmp(argv[1], "write"))
		disk_write(argv + 2);
	else if (argc >= 6 && !strcmp(argv[1], "copy"))
		disk_copy(argc - 2, argv + 2);
	else if (argc == 2 && !strcmp(argv[1], "memory"))
		for (int t = 1; t <= 2; t++) {
			bench("memcpy", COPY, t, 256 * MIB, 4);
			bench("memory read", READ, t, 256 * MIB, 8);
			bench("first touch", TOUCH, t, 256 * MIB, 1);
		}
	else if (argc == 2 && !strcmp(argv[1], "sha256"))
		for (int t = 1; t <= 2; t++)
			bench("sha256 openssl", SHA, t, 128 * MIB, 4);
	else {
		fprintf(stderr, "limits: see the comment at the top of limits.c for usage\n");
		return 2;
	}
	return 0;
}
