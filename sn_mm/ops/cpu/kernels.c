/* Both passes of Switchable Normalization on the CPU; ../protocol.py says what each function does.
 *
 * x (N, C, L) lies in memory as N * C channels of L values (contiguous), or as N * L rows of C
 * values (channels_last). It is float32, bfloat16 or float16 and becomes float32 as it is loaded.
 * Sums run in float32 over a block that stays in the L1 cache, and in double over blocks; the
 * (N, C) algebra runs in double and is stored in float32.
 *
 * Threads come from the OpenMP runtime that torch has loaded: GOMP_parallel, the entry that a
 * compiled "#pragma omp parallel" calls, is called by its name. So any C compiler will do, with
 * OpenMP or without, and never starts a second pool of threads. Without the runtime one thread
 * does everything, and sn_has_threads() says so.
 */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifdef __F16C__
#include <immintrin.h>
#endif

#define INLINE static inline __attribute__((always_inline))
#define MIN(a, b) ((a) < (b) ? (a) : (b))
#define MAX(a, b) ((a) > (b) ? (a) : (b))

#if defined __AVX512F__
#define LANES 16
#elif defined __AVX__
#define LANES 8
#else
#define LANES 4
#endif
#define BLOCK 2048 /* values of a channel in one float32 sum */
#define WIDTH 4    /* vectors of a row that are worked on at once */
#define ROWS 32    /* rows in one float32 sum */
#define CHUNK 256  /* channels whose coefficients are at hand at once */

typedef float vec __attribute__((vector_size(4 * LANES)));
typedef int32_t ivec __attribute__((vector_size(4 * LANES)));
typedef uint32_t uvec __attribute__((vector_size(4 * LANES)));
typedef uint16_t half_vec __attribute__((vector_size(2 * LANES)));

enum type { FLOAT32, BFLOAT16, FLOAT16 };

enum scope { IN = 1, LN = 2, BN = 4 };

/* What a pass works on; __init__.py packs it. Pointers that a pass does not use are NULL. So are
 * those to moments and sums that nobody needs after a whole pass: `lend` gives it memory for them.
 */
struct pass {
    const void *x, *dy;
    void *out;                                            /* y or dx */
    float *instance, *layer, *batch;                      /* moments (2, N, C), (2, N), (2, C) */
    float *instance_sums, *layer_sums, *batch_sums;       /* of backward, the same shapes */
    const float *mean_logits, *var_logits, *weight, *bias;
    float *grad_mean_logits, *grad_var_logits, *grad_weight, *grad_bias;
    float *running_mean, *running_var; /* moved, or with batch_given the batch scope */
    int64_t *batches;
    int64_t n, c, l;
    int64_t type, channels_last, threads;
    int64_t scopes;      /* that are mixed, of enum scope */
    int64_t batch_given; /* not measured, so that no gradient flows through it */
    int64_t correction;
    int64_t cumulative; /* the momentum is 1 / batches */
    double eps, momentum;
    double total; /* positions behind the batch scope; 0 where it is held fixed */
    double *means; /* (N, C), of instances, unrounded: the wider scopes' are rounded once */
};

/* ---- memory ---- */

/* Memory, to be freed, for those of a pass's moments or sums that are NULL; NULL if there is none. */
static void *lend(struct pass *p, float **instance, float **layer, float **batch)
{
    int64_t nc = p->n * p->c;
    double *means = malloc(nc * sizeof *means + 2 * (nc + p->n + p->c) * sizeof(float));
    float *rest = (float *)(means + nc);
    if (!means)
        return NULL;
    p->means = means;
    if (!*instance)
        *instance = rest;
    if (!*layer && p->scopes & LN)
        *layer = rest + 2 * nc;
    if (!*batch && p->scopes & BN)
        *batch = rest + 2 * (nc + p->n);
    return means;
}

/* ---- threads ---- */

extern void GOMP_parallel(void (*)(void *), void *, unsigned, unsigned) __attribute__((weak));
extern int omp_get_thread_num(void) __attribute__((weak));
extern int omp_get_num_threads(void) __attribute__((weak));

/* Works on [from, to); `thread` counts from 0. */
typedef void task(const struct pass *, void *scratch, int64_t from, int64_t to, int64_t thread);

struct job {
    task *task;
    const struct pass *pass;
    void *scratch;
    int64_t size;
};

static void share_of_thread(void *data)
{
    const struct job *job = data;
    int64_t thread = omp_get_thread_num(), threads = omp_get_num_threads();
    int64_t from = job->size * thread / threads, to = job->size * (thread + 1) / threads;
    if (from < to)
        job->task(job->pass, job->scratch, from, to, thread);
}

/* A forked child may not enter a parallel region: with one thread none is entered. */
static void run(task *task, const struct pass *pass, void *scratch, int64_t size, int64_t threads)
{
    threads = MIN(threads, size);
    if (threads > 1 && GOMP_parallel) {
        struct job job = {task, pass, scratch, size};
        GOMP_parallel(share_of_thread, &job, (unsigned)threads, 0);
    } else {
        task(pass, scratch, 0, size, 0);
    }
}

/* Threads for the (N, C) algebra: tens of microseconds' work each. */
static int64_t algebra_threads(const struct pass *p)
{
    return MIN(p->threads, 1 + p->n * p->c / 4096);
}

/* ---- loading and storing ---- */

INLINE size_t size_of(int type)
{
    return type == FLOAT32 ? 4 : 2;
}

INLINE vec pick(ivec mask, vec yes, vec no)
{
    return (vec)(((ivec)yes & mask) | ((ivec)no & ~mask));
}

INLINE vec from_float16(half_vec h)
{
#if defined __F16C__ && LANES == 16
    return (vec)_mm512_cvtph_ps((__m256i)h);
#elif defined __F16C__ && LANES == 8
    return (vec)_mm256_cvtph_ps((__m128i)h);
#else
    const uint32_t infinite = 0x7c00u << 13;
    uvec wide = __builtin_convertvector(h, uvec), sign = (wide & 0x8000u) << 16;
    uvec bits = (wide & 0x7fffu) << 13, exponent = bits & infinite;
    bits += (127u - 15u) << 23;
    bits += (uvec)(exponent == infinite) & ((128u - 16u) << 23);
    ivec subnormal = exponent == 0;
    const uvec smallest = (uvec){} + (113u << 23); /* 2^-14 */
    vec small = (vec)(bits + (1u << 23)) - (vec)smallest;
    return (vec)((uvec)pick(subnormal, small, (vec)bits) | sign);
#endif
}

INLINE half_vec to_float16(vec v)
{
#if defined __F16C__ && LANES == 16
    return (half_vec)_mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT);
#elif defined __F16C__ && LANES == 8
    return (half_vec)_mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT);
#else
    uvec bits = (uvec)v & 0x7fffffffu, sign = ((uvec)v >> 16) & 0x8000u;
    /* Adding 0.5 leaves a subnormal's 10 bits, rounded, in the lowest places. */
    uvec small = (uvec)((vec)bits + 0.5f) - (126u << 23);
    uvec normal = (bits - (112u << 23) + 0xfffu + ((bits >> 13) & 1u)) >> 13;
    uvec half = (uvec)pick((ivec)(bits < (113u << 23)), (vec)small, (vec)normal);
    uvec special = (uvec)pick((ivec)(bits > (255u << 23)), (vec)((uvec){} + 0x7e00u),
                              (vec)((uvec){} + 0x7c00u));
    half = (uvec)pick((ivec)(bits >= (143u << 23)), (vec)special, (vec)half);
    return __builtin_convertvector(half | sign, half_vec);
#endif
}

INLINE half_vec to_bfloat16(vec v)
{
    uvec bits = (uvec)v;
    uvec rounded = bits + 0x7fffu + ((bits >> 16) & 1u);
    uvec nan = bits | (1u << 22);
    rounded = (uvec)pick((ivec)(v != v), (vec)nan, (vec)rounded);
    return __builtin_convertvector(rounded >> 16, half_vec);
}

INLINE vec load(const void *p, int64_t i, int type)
{
    const char *at = (const char *)p + i * size_of(type);
    if (type == FLOAT32) {
        vec v;
        memcpy(&v, at, sizeof v);
        return v;
    }
    half_vec h;
    memcpy(&h, at, sizeof h);
    if (type == FLOAT16)
        return from_float16(h);
    return (vec)(__builtin_convertvector(h, uvec) << 16);
}

/* Asks for a value of the next block while this one, in the L1 cache, is worked on. */
INLINE void fetch(const void *p, int64_t i, int type)
{
    __builtin_prefetch((const char *)p + i * (int64_t)size_of(type));
}

INLINE void store(void *p, int64_t i, int type, vec v)
{
    char *at = (char *)p + i * size_of(type);
    if (type == FLOAT32) {
        memcpy(at, &v, sizeof v);
    } else {
        half_vec h = type == FLOAT16 ? to_float16(v) : to_bfloat16(v);
        memcpy(at, &h, sizeof h);
    }
}

/* `count` < LANES values in the first lanes, 0 in the others. */
INLINE vec load_few(const void *p, int64_t i, int type, int64_t count)
{
    char buffer[4 * LANES] = {0};
    memcpy(buffer, (const char *)p + i * size_of(type), count * size_of(type));
    return load(buffer, 0, type);
}

INLINE void store_few(void *p, int64_t i, int type, int64_t count, vec v)
{
    char buffer[4 * LANES];
    store(buffer, 0, type, v);
    memcpy((char *)p + i * size_of(type), buffer, count * size_of(type));
}

INLINE vec load_lanes(const void *p, int64_t i, int type, int64_t lanes)
{
    return lanes == LANES ? load(p, i, type) : load_few(p, i, type, lanes);
}

INLINE float load_one(const void *p, int64_t i, int type)
{
    half_vec h = {0};
    if (type == FLOAT32)
        return ((const float *)p)[i];
    h[0] = ((const uint16_t *)p)[i];
    return load(&h, 0, type)[0];
}

/* `v` with 0 in all lanes but the last `count`. */
INLINE vec last(vec v, int64_t count)
{
    ivec lane;
    for (int k = 0; k < LANES; k++)
        lane[k] = k;
    return (vec)((ivec)v & (lane >= LANES - (int32_t)count));
}

/* `count` < LANES values from i on in the last lanes; the others are values before, or 0. */
INLINE vec load_last(const void *p, int64_t i, int type, int64_t count)
{
    if (i + count >= LANES)
        return load(p, i + count - LANES, type);
    char buffer[4 * LANES] = {0};
    memcpy(buffer + (LANES - count) * size_of(type), (const char *)p + i * size_of(type),
           count * size_of(type));
    return load(buffer, 0, type);
}

/* The pivot that a sum runs about: a value, or 0 where inf - inf would be the NaN of an inf mean. */
INLINE float pivot_of(float value)
{
    return value - value == 0 ? value : 0;
}

INLINE vec pivots_of(vec v)
{
    return (vec)((ivec)v & (v - v == 0));
}

/* In double: float32 overflows in sums of values near 1e36, whose mean is finite. */
INLINE double sum_lanes(vec v)
{
    typedef float four __attribute__((vector_size(16)));
    typedef double four_wide __attribute__((vector_size(32)));
    union {
        vec all;
        four fours[LANES / 4];
    } parts = {v};
    four_wide sum = __builtin_convertvector(parts.fours[0], four_wide);
    for (int k = 1; k < LANES / 4; k++)
        sum += __builtin_convertvector(parts.fours[k], four_wide);
    return (sum[0] + sum[2]) + (sum[1] + sum[3]);
}

/* One instance of `call` for each dtype, in which `type` is a constant. */
#define FOR_TYPE(p, call)                                     \
    do {                                                      \
        if ((p)->type == FLOAT32) {                           \
            enum { type = FLOAT32 };                          \
            call;                                             \
        } else if ((p)->type == BFLOAT16) {                   \
            enum { type = BFLOAT16 };                         \
            call;                                             \
        } else {                                              \
            enum { type = FLOAT16 };                          \
            call;                                             \
        }                                                     \
    } while (0)

/* ---- moments of instances ----
 *
 * A block's mean is taken about its first value and its squares about that mean. Blocks are pooled
 * about the channel's first value: sums of d and of d^2, d the block's mean less that value, in
 * double. As that value is one of the L, var >= d^2 / L, and the difference below loses no more
 * than a factor of L of double's 16 digits.
 */

/* Of `size` channels, from `at` of (N, C) on. */
static void store_moments(const struct pass *p, int64_t at, int64_t size, const float *pivot,
                          const double *restrict sum, const double *restrict squares)
{
    float *restrict means = p->instance + at, *restrict vars = means + p->n * p->c;
    double *restrict unrounded = p->means + at;
    double unbiased = p->correction && p->l > 1 ? (double)p->l / (p->l - 1) : 1;
    for (int64_t k = 0; k < size; k++) {
        double mean = sum[k] / p->l, var = squares[k] / p->l - mean * mean;
        unrounded[k] = pivot[k] + mean;
        means[k] = (float)unrounded[k];
        vars[k] = (float)(unbiased * (var < 0 ? 0 : var));
    }
}

/* Sum of (x - pivot - mean)^power over x from i to `end`. */
INLINE double power_sum(const void *x, int64_t i, int64_t end, int type, float pivot, float mean,
                        int power)
{
#define TERM(v) (power == 1 ? (v) - pivot : ((v) - pivot - mean) * ((v) - pivot - mean))
    vec sum[4] = {{0}};
    for (; i + 4 * LANES <= end; i += 4 * LANES)
        for (int k = 0; k < 4; k++) {
            vec v = load(x, i + k * LANES, type);
            sum[k] += TERM(v);
            if (power == 2)
                fetch(x, i + k * LANES + BLOCK, type);
        }
    for (; i + LANES <= end; i += LANES) {
        vec v = load(x, i, type);
        sum[0] += TERM(v);
    }
    if (i < end) {
        vec v = load_last(x, i, type, end - i);
        sum[1] += last(TERM(v), end - i);
    }
#undef TERM
    return sum_lanes((sum[0] + sum[1]) + (sum[2] + sum[3]));
}

INLINE void channel_moments(const struct pass *p, int64_t from, int64_t to, int type)
{
    float first_value[CHUNK];
    double sum[CHUNK], squares[CHUNK];
    for (; from < to; from += CHUNK) {
        int64_t size = MIN(CHUNK, to - from);
        for (int64_t k = 0; k < size; k++) {
            int64_t start = (from + k) * p->l, end = start + p->l;
            first_value[k] = pivot_of(load_one(p->x, start, type));
            sum[k] = squares[k] = 0;
            for (int64_t i = start; i < end; i += BLOCK) {
                int64_t stop = MIN(i + BLOCK, end);
                float pivot = pivot_of(load_one(p->x, i, type));
                double count = stop - i, mean = power_sum(p->x, i, stop, type, pivot, 0, 1) / count;
                double d = (double)pivot - first_value[k] + mean;
                double about_mean = power_sum(p->x, i, stop, type, pivot, (float)mean, 2);
                sum[k] += count * d;
                squares[k] += about_mean + count * d * d;
            }
        }
        store_moments(p, from, size, first_value, sum, squares);
    }
}

static void contiguous_moments(const struct pass *p, void *scratch, int64_t from, int64_t to,
                               int64_t thread)
{
    FOR_TYPE(p, channel_moments(p, from, to, type));
}

/* ---- sums of instances ---- */

INLINE void channel_sums(const struct pass *p, int64_t from, int64_t to, int type)
{
    for (int64_t at = from; at < to; at++) {
        int64_t end = (at + 1) * p->l;
        float mean = p->instance[at];
        double sum = 0, sum_x = 0;
        for (int64_t start = at * p->l; start < end; start += BLOCK) {
            int64_t i = start, stop = MIN(start + BLOCK, end);
            vec s[4] = {{0}}, sx[4] = {{0}};
            for (; i + 4 * LANES <= stop; i += 4 * LANES)
                for (int k = 0; k < 4; k++) {
                    vec g = load(p->dy, i + k * LANES, type);
                    s[k] += g;
                    sx[k] += g * (load(p->x, i + k * LANES, type) - mean);
                }
            for (; i + LANES <= stop; i += LANES) {
                vec g = load(p->dy, i, type);
                s[0] += g;
                sx[0] += g * (load(p->x, i, type) - mean);
            }
            if (i < stop) {
                vec g = load_last(p->dy, i, type, stop - i);
                s[1] += last(g, stop - i);
                sx[1] += last(g * (load_last(p->x, i, type, stop - i) - mean), stop - i);
            }
            sum += sum_lanes((s[0] + s[1]) + (s[2] + s[3]));
            sum_x += sum_lanes((sx[0] + sx[1]) + (sx[2] + sx[3]));
        }
        p->instance_sums[at] = (float)sum;
        p->instance_sums[p->n * p->c + at] = (float)sum_x;
    }
}

static void contiguous_sums(const struct pass *p, void *scratch, int64_t from, int64_t to,
                            int64_t thread)
{
    FOR_TYPE(p, channel_sums(p, from, to, type));
}

/* ---- both, of rows ----
 *
 * A unit is a piece of the rows of one image. Its sums stand in double in (2, C), about the
 * image's first row where they are moments. Units of the same image are added in their order.
 */

/* The moments' sums of `rows` rows and `width` vectors; `lanes` of a vector are in use. */
INLINE void tile_moments(const struct pass *p, int64_t first_row, int64_t row, int64_t rows,
                         int64_t channel, int width, int64_t lanes, int type, double *restrict sums)
{
#define AT(r, k) ((r) * p->c + channel + (k) * LANES)
#define LOAD(r, k) load_lanes(p->x, AT(r, k), type, lanes)
    vec tile[ROWS][WIDTH], pivot[WIDTH], sum[WIDTH], squares[WIDTH];
    for (int k = 0; k < width; k++) {
        pivot[k] = pivots_of(LOAD(row, k));
        sum[k] = squares[k] = (vec){0};
    }
    for (int64_t r = 0; r < rows; r++)
        for (int k = 0; k < width; k++) {
            tile[r][k] = LOAD(row + r, k) - pivot[k];
            fetch(p->x, AT(row + r + ROWS, k), type);
            sum[k] += tile[r][k];
        }
    for (int k = 0; k < width; k++)
        sum[k] /= (float)rows;
    for (int64_t r = 0; r < rows; r++)
        for (int k = 0; k < width; k++) {
            vec d = tile[r][k] - sum[k];
            squares[k] += d * d;
        }
    float pivots[WIDTH * LANES], first_values[WIDTH * LANES];
    float means[WIDTH * LANES], about_mean[WIDTH * LANES];
    for (int k = 0; k < width; k++) {
        store(pivots, k * LANES, FLOAT32, pivot[k]);
        store(first_values, k * LANES, FLOAT32, pivots_of(LOAD(first_row, k)));
        store(means, k * LANES, FLOAT32, sum[k]);
        store(about_mean, k * LANES, FLOAT32, squares[k]);
    }
    for (int64_t k = 0; k < (width - 1) * LANES + lanes; k++) {
        double d = (double)pivots[k] - first_values[k] + means[k];
        sums[channel + k] += rows * d;
        sums[p->c + channel + k] += about_mean[k] + rows * d * d;
    }
#undef LOAD
}

INLINE void tile_sums(const struct pass *p, int64_t image, int64_t row, int64_t rows,
                      int64_t channel, int width, int64_t lanes, int type, double *restrict sums)
{
    vec mean[WIDTH], sum[WIDTH], sum_x[WIDTH];
    for (int k = 0; k < width; k++) {
        mean[k] = load_lanes(p->instance, AT(image, k), FLOAT32, lanes);
        sum[k] = sum_x[k] = (vec){0};
    }
    for (int64_t r = row; r < row + rows; r++)
        for (int k = 0; k < width; k++) {
            vec g = load_lanes(p->dy, AT(r, k), type, lanes);
            if (type != FLOAT32) { /* float32's lines are as long as a vector: no gain */
                fetch(p->x, AT(r + ROWS, k), type);
                fetch(p->dy, AT(r + ROWS, k), type);
            }
            sum[k] += g;
            sum_x[k] += g * (load_lanes(p->x, AT(r, k), type, lanes) - mean[k]);
        }
    float all[WIDTH * LANES], all_x[WIDTH * LANES];
    for (int k = 0; k < width; k++) {
        store(all, k * LANES, FLOAT32, sum[k]);
        store(all_x, k * LANES, FLOAT32, sum_x[k]);
    }
    for (int64_t k = 0; k < (width - 1) * LANES + lanes; k++) {
        sums[channel + k] += all[k];
        sums[p->c + channel + k] += all_x[k];
    }
#undef AT
}

INLINE void tile_collect(const struct pass *p, int64_t image, int64_t row, int64_t rows,
                         int64_t channel, int width, int64_t lanes, int type, double *restrict sums)
{
    if (p->dy)
        tile_sums(p, image, row, rows, channel, width, lanes, type, sums);
    else
        tile_moments(p, image * p->l, row, rows, channel, width, lanes, type, sums);
}

/* Of fewer channels than a vector has: seldom, so for all dtypes in one. */
static void edge_collect(const struct pass *p, int64_t image, int64_t row, int64_t rows,
                         int64_t channel, double *restrict sums)
{
    tile_collect(p, image, row, rows, channel, 1, p->c - channel, (int)p->type, sums);
}

INLINE void unit_collect(const struct pass *p, int64_t image, int64_t from, int64_t to, int type,
                         double *sums)
{
    for (int64_t row = image * p->l + from; row < image * p->l + to; row += ROWS) {
        int64_t rows = MIN(ROWS, image * p->l + to - row), c = 0;
        for (; c + WIDTH * LANES <= p->c; c += WIDTH * LANES)
            tile_collect(p, image, row, rows, c, WIDTH, LANES, type, sums);
        for (; c + LANES <= p->c; c += LANES)
            tile_collect(p, image, row, rows, c, 1, LANES, type, sums);
        if (c < p->c)
            edge_collect(p, image, row, rows, c, sums);
    }
}

struct units {
    int64_t pieces; /* of an image */
    double *sums;   /* (thread, 2, C) with one piece, else (N, pieces, 2, C) */
};

static void store_unit(const struct pass *p, int64_t image, const double *sums)
{
    if (p->dy) {
        for (int64_t c = 0; c < p->c; c++) {
            p->instance_sums[image * p->c + c] = (float)sums[c];
            p->instance_sums[(p->n + image) * p->c + c] = (float)sums[p->c + c];
        }
        return;
    }
    float first_row[CHUNK];
    for (int64_t c = 0; c < p->c; c += CHUNK) {
        int64_t size = MIN(CHUNK, p->c - c);
        for (int64_t k = 0; k < size; k++)
            first_row[k] = pivot_of(load_one(p->x, image * p->l * p->c + c + k, (int)p->type));
        store_moments(p, image * p->c + c, size, first_row, sums + c, sums + p->c + c);
    }
}

static void collect_units(const struct pass *p, void *scratch, int64_t from, int64_t to,
                          int64_t thread)
{
    const struct units *units = scratch;
    for (int64_t unit = from; unit < to; unit++) {
        int64_t image = unit / units->pieces, piece = unit % units->pieces;
        int64_t start = p->l * piece / units->pieces, end = p->l * (piece + 1) / units->pieces;
        double *sums = units->sums + (units->pieces == 1 ? thread : unit) * 2 * p->c;
        memset(sums, 0, 2 * p->c * sizeof *sums);
        FOR_TYPE(p, unit_collect(p, image, start, end, type, sums));
        if (units->pieces == 1)
            store_unit(p, image, sums);
    }
}

static void add_pieces(const struct pass *p, void *scratch, int64_t from, int64_t to,
                       int64_t thread)
{
    const struct units *units = scratch;
    for (int64_t image = from; image < to; image++) {
        double *sums = units->sums + image * units->pieces * 2 * p->c;
        for (int64_t piece = 1; piece < units->pieces; piece++)
            for (int64_t k = 0; k < 2 * p->c; k++)
                sums[k] += sums[piece * 2 * p->c + k];
        store_unit(p, image, sums);
    }
}

/* Pieces of an image: so many that the threads get equal parts, of 64 rows or more. */
static int64_t pieces_of_image(const struct pass *p)
{
    int64_t a = p->n, b = p->threads;
    if (a >= 8 * b)
        return 1;
    while (b) { /* a becomes the greatest common divisor */
        int64_t rest = a % b;
        a = b;
        b = rest;
    }
    return MIN(p->threads / a, MAX(1, p->l / 64));
}

/* Moments of the instances, or with dy their sums. Returns 1 without memory. */
static int collect(const struct pass *p)
{
    if (!p->channels_last) {
        run(p->dy ? contiguous_sums : contiguous_moments, p, NULL, p->n * p->c, p->threads);
        return 0;
    }
    struct units units = {pieces_of_image(p), NULL};
    int64_t stored = units.pieces == 1 ? p->threads : p->n * units.pieces;
    units.sums = malloc(stored * 2 * p->c * sizeof *units.sums);
    if (!units.sums)
        return 1;
    run(collect_units, p, &units, p->n * units.pieces, p->threads);
    if (units.pieces > 1)
        run(add_pieces, p, &units, p->n, p->threads);
    free(units.sums);
    return 0;
}

/* ---- the wider scopes: mean = E[m], var = E[v] + Var[m] ---- */

static void pool_layer(const struct pass *p, void *scratch, int64_t from, int64_t to,
                       int64_t thread)
{
    enum { CHAINS = 8 }; /* independent sums, so that additions overlap */
    for (int64_t n = from; n < to; n++) {
        const double *means = p->means + n * p->c;
        const float *vars = p->instance + (p->n + n) * p->c;
        double mean[CHAINS] = {0}, var[CHAINS] = {0};
        for (int64_t c = 0; c < p->c; c += CHAINS)
            for (int k = 0; k < MIN(CHAINS, p->c - c); k++)
                mean[k] += means[c + k];
        for (int k = 1; k < CHAINS; k++)
            mean[0] += mean[k];
        mean[0] /= p->c;
        for (int64_t c = 0; c < p->c; c += CHAINS)
            for (int k = 0; k < MIN(CHAINS, p->c - c); k++) {
                double d = means[c + k] - mean[0];
                var[k] += vars[c + k] + d * d;
            }
        for (int k = 1; k < CHAINS; k++)
            var[0] += var[k];
        p->layer[n] = (float)mean[0];
        p->layer[p->n + n] = (float)(var[0] / p->c);
    }
}

static void pool_batch(const struct pass *p, void *scratch, int64_t from, int64_t to,
                       int64_t thread)
{
    double count = (double)p->n * p->l;
    double unbiased = p->correction || count == 1 ? 1 : count / (count - 1);
    for (int64_t start = from; start < to; start += CHUNK) {
        int64_t size = MIN(CHUNK, to - start);
        double mean[CHUNK] = {0}, var[CHUNK] = {0};
        for (int64_t n = 0; n < p->n; n++) {
            const double *means = p->means + n * p->c + start;
            for (int64_t k = 0; k < size; k++)
                mean[k] += means[k];
        }
        for (int64_t k = 0; k < size; k++)
            mean[k] /= p->n;
        for (int64_t n = 0; n < p->n; n++) {
            const double *means = p->means + n * p->c + start;
            const float *vars = p->instance + (p->n + n) * p->c + start;
            for (int64_t k = 0; k < size; k++) {
                double d = means[k] - mean[k];
                var[k] += vars[k] + d * d;
            }
        }
        for (int64_t k = 0; k < size; k++) {
            int64_t c = start + k;
            var[k] /= p->n;
            p->batch[c] = (float)mean[k];
            p->batch[p->c + c] = (float)var[k];
            if (p->running_mean) {
                double keep = 1 - p->momentum;
                p->running_mean[c] = (float)(keep * p->running_mean[c] + p->momentum * mean[k]);
                p->running_var[c] =
                    (float)(keep * p->running_var[c] + p->momentum * unbiased * var[k]);
            }
        }
    }
}

/* ---- the importance, and the moments that it mixes ---- */

/* Of the means and the variances of the scopes in, ln, bn; 0 where a scope is not mixed. */
struct importance {
    double mean[3], var[3];
};

static void softmax(const struct pass *p, const float *logits, double *importance)
{
    const int64_t mixed[3] = {p->scopes & IN, p->scopes & LN, p->scopes & BN};
    double largest = -INFINITY, sum = 0;
    for (int k = 0, i = 0; k < 3; k++)
        if (mixed[k])
            largest = MAX(largest, logits[i]), i++;
    for (int k = 0, i = 0; k < 3; k++)
        sum += importance[k] = mixed[k] ? exp(logits[i++] - largest) : 0;
    for (int k = 0; k < 3; k++)
        importance[k] /= sum;
}

static struct importance importance_of(const struct pass *p)
{
    struct importance importance;
    softmax(p, p->mean_logits, importance.mean);
    softmax(p, p->var_logits, importance.var);
    return importance;
}

/* mu and 1 / sqrt(var + eps) of `size` channels of image n. */
static void mixed_moments(const struct pass *p, const struct importance *importance, int64_t n,
                          int64_t c, int64_t size, double *mu, float *rstd)
{
    double var[CHUNK];
    const float *means = p->instance + n * p->c + c, *vars = means + p->n * p->c;
    double mean_all = p->layer ? importance->mean[1] * p->layer[n] : 0;
    double var_all = p->eps + (p->layer ? importance->var[1] * p->layer[p->n + n] : 0);
    for (int64_t k = 0; k < size; k++) {
        mu[k] = mean_all;
        var[k] = var_all;
    }
    if (p->scopes & IN)
        for (int64_t k = 0; k < size; k++) {
            mu[k] += importance->mean[0] * means[k];
            var[k] += importance->var[0] * vars[k];
        }
    if (p->batch)
        for (int64_t k = 0; k < size; k++) {
            mu[k] += importance->mean[2] * p->batch[c + k];
            var[k] += importance->var[2] * p->batch[p->c + c + k];
        }
    for (int64_t k = 0; k < size; k++)
        rstd[k] = 1 / sqrtf((float)var[k]);
}

/* ---- from input to output: out = a dy + b (x - m) + c, without dy in the forward pass ---- */

struct coefficients {
    float a[CHUNK], b[CHUNK], c[CHUNK], m[CHUNK];
};
_Static_assert(CHUNK % LANES == 0, "a vector of coefficients ends within its array");

static void forward_coefficients(const struct pass *p, const struct importance *importance,
                                 int64_t n, int64_t c, int64_t size, struct coefficients *out)
{
    double mu[CHUNK];
    float rstd[CHUNK];
    mixed_moments(p, importance, n, c, size, mu, rstd);
    for (int64_t k = 0; k < size; k++) {
        out->m[k] = (float)mu[k];
        out->b[k] = p->weight ? p->weight[c + k] * rstd[k] : rstd[k];
        /* The part of mu that float32 cannot hold; inf has none. */
        double rest = out->m[k] - out->m[k] == 0 ? mu[k] - out->m[k] : 0;
        out->c[k] = (float)((p->bias ? p->bias[c + k] : 0) - rest * out->b[k]);
    }
}

/* The scope's mean is sum part m, its variance sum part (v + (m - mean)^2). */
static void backward_coefficients(const struct pass *p, const struct importance *importance,
                                  int64_t n, int64_t c, int64_t size, struct coefficients *out)
{
    double mu[CHUNK], grad_mean[CHUNK], grad_var[CHUNK];
    float rstd[CHUNK];
    int64_t nc = p->n * p->c, at = n * p->c + c;
    const float *mean = p->instance + at, *s1 = p->instance_sums + at, *s2 = s1 + nc;
    mixed_moments(p, importance, n, c, size, mu, rstd);
    for (int64_t k = 0; k < size; k++) {
        double r = rstd[k], scale = p->weight ? p->weight[c + k] * r : r;
        out->m[k] = mean[k];
        out->a[k] = (float)scale;
        grad_mean[k] = importance->mean[0] * scale * s1[k];
        grad_var[k] = importance->var[0] * scale * r * r * (s2[k] + (mean[k] - mu[k]) * s1[k]);
    }
    if (p->layer_sums) {
        double part = 1. / p->c, centre = p->layer[n];
        double of_mean = part * p->layer_sums[n], of_var = part * p->layer_sums[p->n + n];
        for (int64_t k = 0; k < size; k++) {
            grad_mean[k] += of_mean + (mean[k] - centre) * of_var;
            grad_var[k] += of_var;
        }
    }
    if (p->batch_sums) {
        double part = p->l / p->total;
        for (int64_t k = 0; k < size; k++) {
            double of_var = part * p->batch_sums[p->c + c + k];
            grad_mean[k] += part * p->batch_sums[c + k] +
                            ((double)mean[k] - p->batch[c + k]) * of_var;
            grad_var[k] += of_var;
        }
    }
    double per_position = -1. / p->l;
    double unbiased = p->correction && p->l > 1 ? -1. / (p->l - 1) : per_position;
    for (int64_t k = 0; k < size; k++) {
        out->c[k] = (float)(per_position * grad_mean[k]);
        out->b[k] = (float)(unbiased * grad_var[k]);
    }
}

static void coefficients_of(const struct pass *p, const struct importance *importance, int64_t n,
                            int64_t c, int64_t size, struct coefficients *out)
{
    (p->dy ? backward_coefficients : forward_coefficients)(p, importance, n, c, size, out);
}

INLINE void channel_apply(const struct pass *p, int64_t at, float a, float b, float c, float m,
                          int type, int backward)
{
    const char *x = (const char *)p->x + at * p->l * size_of(type);
    const char *dy = backward ? (const char *)p->dy + at * p->l * size_of(type) : NULL;
    char *out = (char *)p->out + at * p->l * size_of(type);
#define RESULT(load, ...)                                                     \
    (backward ? a * load(dy, __VA_ARGS__) + (b * (load(x, __VA_ARGS__) - m) + c) \
              : b * (load(x, __VA_ARGS__) - m) + c)
    int64_t i = 0;
    for (; i + 2 * LANES <= p->l; i += 2 * LANES) {
        vec v = RESULT(load, i, type), w = RESULT(load, i + LANES, type);
        store(out, i, type, v);
        store(out, i + LANES, type, w);
    }
    if (i + LANES <= p->l) {
        store(out, i, type, RESULT(load, i, type));
        i += LANES;
    }
    if (i < p->l && p->l >= LANES) {
        i = p->l - LANES; /* some values once more */
        store(out, i, type, RESULT(load, i, type));
    } else if (type == FLOAT32) { /* a few, one by one: quicker than by a copy of a vector */
        for (; i < p->l; i++)
            ((float *)out)[i] = RESULT(load_one, i, type);
    } else if (i < p->l) {
        store_few(out, i, type, p->l - i, RESULT(load_few, i, type, p->l - i));
    }
#undef RESULT
}

/* Of `lanes` <= LANES values from `at` on, whose coefficients begin at k. */
INLINE void apply_vector(const struct pass *p, int64_t at, int64_t k, int64_t lanes, int type,
                         int backward, const struct coefficients *all)
{
    vec v = load_lanes(p->x, at, type, lanes) - load(all->m, k, FLOAT32);
    v = load(all->b, k, FLOAT32) * v + load(all->c, k, FLOAT32);
    if (backward)
        v += load(all->a, k, FLOAT32) * load_lanes(p->dy, at, type, lanes);
    if (lanes == LANES)
        store(p->out, at, type, v);
    else
        store_few(p->out, at, type, lanes, v);
}

/* Whole stretches of rows: with 64 channels at a time, as above, stores are up to a third slower. */
INLINE void rows_apply(const struct pass *p, int64_t from, int64_t to, int64_t channel,
                       int64_t size, int type, int backward, const struct coefficients *all)
{
    for (int64_t row = from; row < to; row++) {
        int64_t at = row * p->c + channel, k = 0;
        for (; k + LANES <= size; k += LANES)
            apply_vector(p, at + k, k, LANES, type, backward, all);
        if (k < size)
            apply_vector(p, at + k, k, size - k, type, backward, all);
    }
}

static void contiguous_apply(const struct pass *p, void *scratch, int64_t from, int64_t to,
                             int64_t thread)
{
    struct coefficients all;
    for (int64_t at = from, next; at < to; at = next) {
        int64_t n = at / p->c, c = at % p->c, size = MIN(CHUNK, MIN(p->c - c, to - at));
        next = at + size;
        coefficients_of(p, scratch, n, c, size, &all);
        for (int64_t k = 0; k < size; k++) {
            float a = all.a[k], b = all.b[k], c = all.c[k], m = all.m[k];
            if (p->dy)
                FOR_TYPE(p, channel_apply(p, at + k, a, b, c, m, type, 1));
            else
                FOR_TYPE(p, channel_apply(p, at + k, a, b, c, m, type, 0));
        }
    }
}

static void channels_last_apply(const struct pass *p, void *scratch, int64_t from, int64_t to,
                                int64_t thread)
{
    struct coefficients all;
    for (int64_t row = from, next; row < to; row = next) {
        int64_t n = row / p->l;
        next = MIN(to, (n + 1) * p->l);
        for (int64_t c = 0; c < p->c; c += CHUNK) {
            int64_t size = MIN(CHUNK, p->c - c);
            coefficients_of(p, scratch, n, c, size, &all);
            if (p->dy)
                FOR_TYPE(p, rows_apply(p, row, next, c, size, type, 1, &all));
            else
                FOR_TYPE(p, rows_apply(p, row, next, c, size, type, 0, &all));
        }
    }
}

static void apply(const struct pass *p)
{
    struct importance importance = importance_of(p);
    if (p->channels_last)
        run(channels_last_apply, p, &importance, p->n * p->l, p->threads);
    else
        run(contiguous_apply, p, &importance, p->n * p->c, p->threads);
}

/* ---- sums of scopes, gradients of the parameters ---- */

struct gradients {
    struct importance importance;
    double *of_importance; /* (thread, 2, 2): of in and of bn, for grad_logits */
    double *rows;          /* (thread, N, 2): sums of g1 and of g2 over the thread's channels */
};

static double dot(const double *a, const float *b, int64_t size)
{
    double lanes[8] = {0}, sum = 0;
    int64_t i = 0;
    for (; i + 8 <= size; i += 8)
        for (int k = 0; k < 8; k++)
            lanes[k] += a[i + k] * (b ? b[i + k] : 1);
    for (; i < size; i++)
        sum += a[i] * (b ? b[i] : 1);
    for (int k = 0; k < 8; k++)
        sum += lanes[k];
    return sum;
}

static void channel_gradients(const struct pass *p, void *scratch, int64_t from, int64_t to,
                              int64_t thread)
{
    struct gradients *all = scratch;
    double(*of_importance)[2] = (void *)(all->of_importance + thread * 4);
    double(*rows)[2] = (void *)(all->rows + thread * p->n * 2);
    int64_t nc = p->n * p->c;
    for (int64_t start = from; start < to; start += CHUNK) {
        int64_t size = MIN(CHUNK, to - start);
        double mu[CHUNK], g1[CHUNK], g2[CHUNK];
        double bias[CHUNK] = {0}, weight[CHUNK] = {0}, sum1[CHUNK] = {0}, sum2[CHUNK] = {0};
        float rstd[CHUNK];
        for (int64_t n = 0; n < p->n; n++) {
            int64_t at = n * p->c + start;
            const float *mean = p->instance + at, *s1 = p->instance_sums + at, *s2 = s1 + nc;
            mixed_moments(p, &all->importance, n, start, size, mu, rstd);
            for (int64_t k = 0; k < size; k++) {
                double r = rstd[k], scale = p->weight ? p->weight[start + k] * r : r;
                double sum_xhat = r * (s2[k] + (mean[k] - mu[k]) * s1[k]);
                g1[k] = scale * s1[k];
                g2[k] = scale * r * sum_xhat;
                bias[k] += s1[k];
                weight[k] += sum_xhat;
                sum1[k] += g1[k];
                sum2[k] += g2[k];
            }
            rows[n][0] += dot(g1, NULL, size);
            rows[n][1] += dot(g2, NULL, size);
            if (p->scopes & IN) {
                of_importance[0][0] += dot(g1, mean, size);
                of_importance[1][0] += dot(g2, mean + nc, size);
            }
        }
        if (p->batch) {
            of_importance[0][1] += dot(sum1, p->batch + start, size);
            of_importance[1][1] += dot(sum2, p->batch + p->c + start, size);
        }
        for (int64_t k = 0; k < size; k++) {
            int64_t c = start + k;
            if (p->grad_weight)
                p->grad_weight[c] = (float)weight[k];
            if (p->grad_bias)
                p->grad_bias[c] = (float)bias[k];
            if (p->batch_sums) {
                p->batch_sums[c] = (float)(all->importance.mean[2] * sum1[k]);
                p->batch_sums[p->c + c] = (float)(all->importance.var[2] * sum2[k]);
            }
        }
    }
}

/* Through the softmax; `of_importance` is -1 / `factor` times the gradient of the importance. */
static void grad_logits(const struct pass *p, const double *importance, const double *of_importance,
                        double factor, float *out)
{
    const int64_t mixed[3] = {p->scopes & IN, p->scopes & LN, p->scopes & BN};
    double mean = 0;
    for (int k = 0; k < 3; k++)
        mean += importance[k] * of_importance[k];
    for (int k = 0; k < 3; k++)
        if (mixed[k])
            *out++ = (float)(-factor * importance[k] * (of_importance[k] - mean));
}

/* ---- passes; each returns 1 if it gets no memory, else 0 ---- */

static int measure(struct pass *p)
{
    if (p->batch_given) {
        memcpy(p->batch, p->running_mean, p->c * sizeof(float));
        memcpy(p->batch + p->c, p->running_var, p->c * sizeof(float));
        if (p->scopes == BN) { /* x is not read */
            for (int64_t n = 0; n < 2 * p->n; n++)
                memcpy(p->instance + n * p->c, p->batch + n / p->n * p->c, p->c * sizeof(float));
            return 0;
        }
    } else if (p->running_mean) {
        if (p->batches)
            ++*p->batches;
        if (p->cumulative)
            p->momentum = 1. / *p->batches;
    }
    if (collect(p))
        return 1;
    if (p->scopes & LN)
        run(pool_layer, p, NULL, p->n, algebra_threads(p));
    if (p->scopes & BN && !p->batch_given)
        run(pool_batch, p, NULL, p->c, algebra_threads(p));
    return 0;
}

static int reduce(const struct pass *p)
{
    int64_t threads = algebra_threads(p);
    if (collect(p))
        return 1;
    struct gradients all = {.importance = importance_of(p)};
    all.of_importance = calloc(threads * (4 + 2 * p->n), sizeof(double));
    if (!all.of_importance)
        return 1;
    all.rows = all.of_importance + threads * 4;
    run(channel_gradients, p, &all, p->c, threads);

    double of_importance[2][3] = {{0}};
    for (int64_t t = 0; t < threads; t++)
        for (int i = 0; i < 2; i++) {
            of_importance[i][0] += all.of_importance[t * 4 + i * 2];
            of_importance[i][2] += all.of_importance[t * 4 + i * 2 + 1];
        }
    for (int64_t n = 0; p->layer && n < p->n; n++)
        for (int i = 0; i < 2; i++) {
            double sum = 0;
            for (int64_t t = 0; t < threads; t++)
                sum += all.rows[(t * p->n + n) * 2 + i];
            double of_ln = (i ? all.importance.var : all.importance.mean)[1];
            p->layer_sums[i * p->n + n] = (float)(of_ln * sum);
            of_importance[i][1] += sum * p->layer[i * p->n + n];
        }
    free(all.of_importance);
    grad_logits(p, all.importance.mean, of_importance[0], 1, p->grad_mean_logits);
    grad_logits(p, all.importance.var, of_importance[1], 0.5, p->grad_var_logits);
    return 0;
}

/* ---- the functions that Python calls: whole passes, and their steps ---- */

static int forward(const struct pass *given, int whole)
{
    struct pass p = *given;
    void *memory = lend(&p, &p.instance, &p.layer, &p.batch);
    int failed = !memory || measure(&p);
    if (!failed && whole)
        apply(&p);
    free(memory);
    return failed;
}

int sn_forward(const struct pass *p)
{
    return forward(p, 1);
}

int sn_backward(const struct pass *given)
{
    struct pass p = *given;
    void *memory = lend(&p, &p.instance_sums, &p.layer_sums, &p.batch_sums);
    if (p.batch_given)
        p.batch_sums = NULL;
    int failed = !memory || reduce(&p);
    if (!failed && p.out)
        apply(&p);
    free(memory);
    return failed;
}

int sn_measure(const struct pass *p)
{
    return forward(p, 0);
}

int sn_apply(const struct pass *p)
{
    apply(p);
    return 0;
}

int sn_reduce(const struct pass *p)
{
    return reduce(p);
}

int sn_has_threads(void)
{
    return !!GOMP_parallel;
}
