/* The loops of a search: over codes of 8 bits, over stored float16 rows, and a complete search in lists of 4-bit codes.

   `_kernels.py` calls them without Python's lock. They are for processors with AVX2 and F16C, which x86 has had since
   2013, and for 64-bit ARM; elsewhere `pixmatcher_kernels_run` returns 0, and FAISS and NumPy do the same work. */

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))

enum {
    CODES_IN_BLOCK = 32, /* rows whose 4-bit codes are side by side */
    CODEBOOK = 16,       /* pairs of values that a code stands for */
    PAIR_BYTES = 32,     /* codes of one block for two places of a code */
};

#if defined(__x86_64__)
#include <immintrin.h>
#define WITH_AVX2 __attribute__((target("avx2,fma,f16c")))

EXPORT int pixmatcher_kernels_run(void) {
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}

/* The products of 16 codes with 16 values of the query, in pairs. */
WITH_AVX2 static inline __m256i products(const uint8_t *codes, const int16_t *query) {
    __m256i wide = _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)codes));
    return _mm256_madd_epi16(wide, _mm256_loadu_si256((const __m256i *)query));
}

WITH_AVX2 static int32_t code_score(const uint8_t *codes, const int16_t *query, int64_t dimension) {
    __m256i first = _mm256_setzero_si256(), second = first, third = first, fourth = first;
    int64_t i = 0;
    for (; i + 64 <= dimension; i += 64) {
        first = _mm256_add_epi32(first, products(codes + i, query + i));
        second = _mm256_add_epi32(second, products(codes + i + 16, query + i + 16));
        third = _mm256_add_epi32(third, products(codes + i + 32, query + i + 32));
        fourth = _mm256_add_epi32(fourth, products(codes + i + 48, query + i + 48));
    }
    for (; i + 16 <= dimension; i += 16) first = _mm256_add_epi32(first, products(codes + i, query + i));
    __m256i all = _mm256_add_epi32(_mm256_add_epi32(first, second), _mm256_add_epi32(third, fourth));
    __m128i half = _mm_add_epi32(_mm256_castsi256_si128(all), _mm256_extracti128_si256(all, 1));
    half = _mm_add_epi32(half, _mm_shuffle_epi32(half, 0x4e));
    int32_t sum = _mm_cvtsi128_si32(_mm_add_epi32(half, _mm_shuffle_epi32(half, 0xb1)));
    for (; i < dimension; i++) sum += (int32_t)codes[i] * query[i];
    return sum;
}

WITH_AVX2 static double row_score(const uint16_t *row, const double *query, int64_t dimension) {
    __m256d first = _mm256_setzero_pd(), second = first, third = first, fourth = first;
    int64_t i = 0;
    for (; i + 16 <= dimension; i += 16) {
        __m256 low = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(row + i)));
        __m256 high = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(row + i + 8)));
        __m256d values = _mm256_cvtps_pd(_mm256_castps256_ps128(low));
        first = _mm256_fmadd_pd(values, _mm256_loadu_pd(query + i), first);
        values = _mm256_cvtps_pd(_mm256_extractf128_ps(low, 1));
        second = _mm256_fmadd_pd(values, _mm256_loadu_pd(query + i + 4), second);
        values = _mm256_cvtps_pd(_mm256_castps256_ps128(high));
        third = _mm256_fmadd_pd(values, _mm256_loadu_pd(query + i + 8), third);
        values = _mm256_cvtps_pd(_mm256_extractf128_ps(high, 1));
        fourth = _mm256_fmadd_pd(values, _mm256_loadu_pd(query + i + 12), fourth);
    }
    __m256d all = _mm256_add_pd(_mm256_add_pd(first, second), _mm256_add_pd(third, fourth));
    __m128d half = _mm_add_pd(_mm256_castpd256_pd128(all), _mm256_extractf128_pd(all, 1));
    double sum = _mm_cvtsd_f64(half) + _mm_cvtsd_f64(_mm_unpackhi_pd(half, half));
    for (; i < dimension; i++) sum += (double)_mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(row[i]))) * query[i];
    return sum;
}

WITH_AVX2 static float centre_score(const uint16_t *centre, const float *query, int64_t width) {
    __m256 sums[4] = {_mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps()};
    int64_t i = 0;
    for (; i + 32 <= width; i += 32)
        for (int j = 0; j < 4; j++) {
            __m256 values = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(centre + i + 8 * j)));
            sums[j] = _mm256_fmadd_ps(values, _mm256_loadu_ps(query + i + 8 * j), sums[j]);
        }
    __m256 all = _mm256_add_ps(_mm256_add_ps(sums[0], sums[1]), _mm256_add_ps(sums[2], sums[3]));
    __m128 half = _mm_add_ps(_mm256_castps256_ps128(all), _mm256_extractf128_ps(all, 1));
    half = _mm_add_ps(half, _mm_movehl_ps(half, half));
    float sum = _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
    for (; i < width; i++) sum += _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(centre[i]))) * query[i];
    return sum;
}

/* The sums of the codes of a block, by looking up two places of 32 codes at once (André et al., 2019). */
WITH_AVX2 static void block_sums(const uint8_t *codes, const uint8_t *table, int64_t pairs, uint16_t *sums) {
    const __m256i low_bits = _mm256_set1_epi8(15);
    /* Bytes are added in 16 bits: the even ones with the odd ones above them, which are subtracted at the end. */
    __m256i even = _mm256_setzero_si256(), odd = even, even_high = even, odd_high = even;
    for (int64_t pair = 0; pair < pairs; pair++, codes += PAIR_BYTES, table += PAIR_BYTES) {
        __m256i both = _mm256_loadu_si256((const __m256i *)codes);
        __m256i values = _mm256_loadu_si256((const __m256i *)table);
        __m256i low = _mm256_shuffle_epi8(values, _mm256_and_si256(both, low_bits));
        __m256i high = _mm256_shuffle_epi8(values, _mm256_and_si256(_mm256_srli_epi16(both, 4), low_bits));
        even = _mm256_add_epi16(even, low);
        odd = _mm256_add_epi16(odd, _mm256_srli_epi16(low, 8));
        even_high = _mm256_add_epi16(even_high, high);
        odd_high = _mm256_add_epi16(odd_high, _mm256_srli_epi16(high, 8));
    }
    even = _mm256_sub_epi16(even, _mm256_slli_epi16(odd, 8));
    even_high = _mm256_sub_epi16(even_high, _mm256_slli_epi16(odd_high, 8));
    const __m256i parts[4] = {even, odd, even_high, odd_high};
    for (int i = 0; i < 4; i++) {
        __m128i sum = _mm_add_epi16(_mm256_castsi256_si128(parts[i]), _mm256_extracti128_si256(parts[i], 1));
        _mm_storeu_si128((__m128i *)(sums + 8 * i), sum);
    }
}

/* A bit for each of 32 sums: whether it is at least `lowest`. */
WITH_AVX2 static uint32_t at_least(const uint16_t *sums, uint16_t lowest) {
    const __m256i limit = _mm256_set1_epi16((int16_t)lowest);
    __m256i first = _mm256_loadu_si256((const __m256i *)sums), second = _mm256_loadu_si256((const __m256i *)sums + 1);
    first = _mm256_cmpeq_epi16(_mm256_max_epu16(first, limit), first);
    second = _mm256_cmpeq_epi16(_mm256_max_epu16(second, limit), second);
    __m256i packed = _mm256_permute4x64_epi64(_mm256_packs_epi16(first, second), 0xd8);
    return (uint32_t)_mm256_movemask_epi8(packed);
}

#elif defined(__aarch64__)
#include <arm_neon.h>

EXPORT int pixmatcher_kernels_run(void) { return 1; }

static int32_t code_score(const uint8_t *codes, const int16_t *query, int64_t dimension) {
    int32_t sum = 0;
    for (int64_t i = 0; i < dimension; i++) sum += (int32_t)codes[i] * query[i];
    return sum;
}

static double row_score(const uint16_t *row, const double *query, int64_t dimension) {
    const __fp16 *values = (const __fp16 *)row;
    double sum[4] = {0};
    int64_t i = 0;
    for (; i + 4 <= dimension; i += 4)
        for (int lane = 0; lane < 4; lane++) sum[lane] += (double)values[i + lane] * query[i + lane];
    for (; i < dimension; i++) sum[0] += (double)values[i] * query[i];
    return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

static float centre_score(const uint16_t *centre, const float *query, int64_t width) {
    const __fp16 *values = (const __fp16 *)centre;
    float32x4_t first = vdupq_n_f32(0), second = first;
    int64_t i = 0;
    for (; i + 8 <= width; i += 8) {
        first = vfmaq_f32(first, vcvt_f32_f16(vld1_f16(values + i)), vld1q_f32(query + i));
        second = vfmaq_f32(second, vcvt_f32_f16(vld1_f16(values + i + 4)), vld1q_f32(query + i + 4));
    }
    float sum = vaddvq_f32(vaddq_f32(first, second));
    for (; i < width; i++) sum += (float)values[i] * query[i];
    return sum;
}

static void block_sums(const uint8_t *codes, const uint8_t *table, int64_t pairs, uint16_t *sums) {
    uint16x8_t parts[4] = {vdupq_n_u16(0), vdupq_n_u16(0), vdupq_n_u16(0), vdupq_n_u16(0)};
    for (int64_t half = 0; half < 2 * pairs; half++, codes += PAIR_BYTES / 2, table += CODEBOOK) {
        uint8x16_t both = vld1q_u8(codes), values = vld1q_u8(table);
        uint16x8_t low = vreinterpretq_u16_u8(vqtbl1q_u8(values, vandq_u8(both, vdupq_n_u8(15))));
        uint16x8_t high = vreinterpretq_u16_u8(vqtbl1q_u8(values, vshrq_n_u8(both, 4)));
        parts[0] = vaddq_u16(parts[0], vandq_u16(low, vdupq_n_u16(255)));
        parts[1] = vaddq_u16(parts[1], vshrq_n_u16(low, 8));
        parts[2] = vaddq_u16(parts[2], vandq_u16(high, vdupq_n_u16(255)));
        parts[3] = vaddq_u16(parts[3], vshrq_n_u16(high, 8));
    }
    for (int i = 0; i < 4; i++) vst1q_u16(sums + 8 * i, parts[i]);
}

static uint32_t at_least(const uint16_t *sums, uint16_t lowest) {
    uint32_t bits = 0;
    for (int i = 0; i < CODES_IN_BLOCK; i++) bits |= (uint32_t)(sums[i] >= lowest) << i;
    return bits;
}

#else

EXPORT int pixmatcher_kernels_run(void) { return 0; }

static int32_t code_score(const uint8_t *codes, const int16_t *query, int64_t dimension) { return 0; }
static double row_score(const uint16_t *row, const double *query, int64_t dimension) { return 0; }
static float centre_score(const uint16_t *centre, const float *query, int64_t width) { return 0; }
static void block_sums(const uint8_t *codes, const uint8_t *table, int64_t pairs, uint16_t *sums) {}
static uint32_t at_least(const uint16_t *sums, uint16_t lowest) { return 0; }

#endif

/* Replace the lowest of `count` scores, which is the first: each score is at most those at 2i + 1 and 2i + 2. */
static void replace_lowest(int32_t *scores, int64_t *positions, int64_t count, int32_t score, int64_t position) {
    int64_t place = 0;
    for (int64_t below = 1; below < count; below = 2 * place + 1) {
        if (below + 1 < count && scores[below + 1] < scores[below]) below++;
        if (scores[below] >= score) break;
        scores[place] = scores[below];
        positions[place] = positions[below];
        place = below;
    }
    scores[place] = score;
    positions[place] = position;
}

/* Find the `count` codes with the highest scores among those from `start` to `stop`, in no particular order.

   Only those whose bit in `allowed` is 1 count, if it is not NULL. `positions` without a code are -1. The caller makes
   sure that no sum of products exceeds 31 bits. */
EXPORT void pixmatcher_best_codes(const uint8_t *codes, int64_t start, int64_t stop, int64_t dimension,
                                  const int16_t *query, const uint8_t *allowed, int64_t count, int32_t *scores,
                                  int64_t *positions) {
    for (int64_t i = 0; i < count; i++) {
        scores[i] = INT32_MIN;
        positions[i] = -1;
    }
    for (int64_t position = start; position < stop; position++) {
        if (allowed && !(allowed[position >> 3] >> (position & 7) & 1)) continue;
        int32_t score = code_score(codes + position * dimension, query, dimension);
        if (score > scores[0]) replace_lowest(scores, positions, count, score, position);
    }
}

/* Write the inner products of `count` of the rows (float16) with the query. */
EXPORT void pixmatcher_row_scores(const uint16_t *rows, const int64_t *numbers, int64_t count, int64_t dimension,
                                  const double *query, float *scores) {
    for (int64_t i = 0; i < count; i++) scores[i] = (float)row_score(rows + numbers[i] * dimension, query, dimension);
}

/* Lists of rows around centres, whose codes are as FAISS packs them for its fast scan: in blocks of 32 rows, and in a
   block two places of all codes after two others. */
typedef struct {
    int64_t count, width;       /* lists; values of a centre, an even number up to 512 */
    const uint16_t *centres;    /* (count, width) float16 */
    const float *codebooks;     /* (width / 2, 2, 16) */
    const uint8_t *const *codes;
    const int64_t *const *rows; /* the numbers of the rows of each list */
    const int64_t *sizes;       /* how many these are */
} Lists;

/* A list or a row, by its number. */
typedef struct {
    float score;
    int64_t number;
} Candidate;

static int is_better(Candidate first, Candidate second) {
    return first.score > second.score || (first.score == second.score && first.number < second.number);
}

static int by_score(const void *first, const void *second) {
    const Candidate *left = first, *right = second;
    return is_better(*right, *left) - is_better(*left, *right);
}

/* Move the best `kept` candidates to the front, in no particular order; `kept` is at least 1. */
static void select_best(Candidate *candidates, int64_t count, int64_t kept) {
    for (int64_t first = 0, last = count - 1; first < last;) {
        const Candidate middle = candidates[first + (last - first) / 2];
        int64_t low = first, high = last;
        while (low <= high) {
            while (is_better(candidates[low], middle)) low++;
            while (is_better(middle, candidates[high])) high--;
            if (low > high) break;
            const Candidate other = candidates[low];
            candidates[low++] = candidates[high];
            candidates[high--] = other;
        }
        if (kept - 1 <= high) last = high;
        else if (kept - 1 >= low) first = low;
        else break;
    }
}

static float lowest_score(const Candidate *candidates, int64_t count) {
    float lowest = candidates[0].score;
    for (int64_t i = 1; i < count; i++) lowest = candidates[i].score < lowest ? candidates[i].score : lowest;
    return lowest;
}

/* Tables for the query: 16 scores for each place of a code, as bytes above the lowest score of the place.

   The score of a code is the sum of its bytes times `unit`, plus `base`. */
static void look_up_tables(const Lists *lists, const float *query, uint8_t *tables, float *unit, float *base) {
    const int64_t places = lists->width / 2;
    float scores[256 * CODEBOOK], greatest = 0;
    *base = 0;
    for (int64_t place = 0; place < places; place++) {
        const float *first = lists->codebooks + place * 2 * CODEBOOK, *second = first + CODEBOOK;
        float *here = scores + place * CODEBOOK, lows[CODEBOOK], highs[CODEBOOK];
        for (int i = 0; i < CODEBOOK; i++)
            here[i] = lows[i] = highs[i] = first[i] * query[2 * place] + second[i] * query[2 * place + 1];
        for (int half = CODEBOOK / 2; half; half /= 2)
            for (int i = 0; i < half; i++) {
                lows[i] = lows[i] < lows[i + half] ? lows[i] : lows[i + half];
                highs[i] = highs[i] > highs[i + half] ? highs[i] : highs[i + half];
            }
        const float lowest = lows[0], highest = highs[0];
        for (int i = 0; i < CODEBOOK; i++) here[i] -= lowest;
        *base += lowest;
        greatest = highest - lowest > greatest ? highest - lowest : greatest;
    }
    *unit = greatest > 0 ? greatest / 255 : 1;
    const float scale = greatest > 0 ? 255 / greatest : 1;
    for (int64_t i = 0; i < places * CODEBOOK; i++) tables[i] = (uint8_t)(int32_t)(scores[i] * scale + 0.5f);
    if (places % 2) memset(tables + places * CODEBOOK, 0, CODEBOOK);
}

/* The best `count` rows by their codes in the first `visited` lists of `order`. `found` has room for 4 * count.

   Return how many there are. Only rows whose bit in `allowed` is 1 count, if it is not NULL; it has `allowed_rows`. */
static int64_t scan_lists(const Lists *lists, const Candidate *order, int64_t visited, const float *query,
                          const uint8_t *allowed, int64_t allowed_rows, int64_t count, Candidate *found) {
    uint8_t tables[256 * CODEBOOK];
    uint16_t sums[CODES_IN_BLOCK];
    float unit, base, limit = -INFINITY;
    look_up_tables(lists, query, tables, &unit, &base);
    const int64_t pairs = (lists->width / 2 + 1) / 2;
    int64_t kept = 0;
    for (int64_t i = 0; i < visited; i++) {
        const int64_t list = order[i].number, *rows = lists->rows[list], size = lists->sizes[list];
        const uint8_t *codes = lists->codes[list];
        const float bias = order[i].score + base;
        for (int64_t start = 0; start < size; start += CODES_IN_BLOCK, codes += pairs * PAIR_BYTES) {
            block_sums(codes, tables, pairs, sums);
            const float needed = (limit - bias) / unit;
            if (needed > UINT16_MAX) continue;
            uint32_t bits = at_least(sums, needed > 0 ? (uint16_t)needed : 0);
            if (size - start < CODES_IN_BLOCK) bits &= (1u << (size - start)) - 1;
            for (; bits; bits &= bits - 1) {
                const int place = __builtin_ctz(bits);
                const float score = bias + sums[place] * unit;
                const int64_t row = rows[start + place];
                if (!(score > limit)) continue;
                if (allowed && (row >= allowed_rows || !(allowed[row >> 3] >> (row & 7) & 1))) continue;
                found[kept++] = (Candidate){score, row};
                if (kept == 4 * count) {
                    select_best(found, kept, count);
                    kept = count;
                    limit = lowest_score(found, count);
                }
            }
        }
    }
    if (kept > count) select_best(found, kept, count);
    return kept < count ? kept : count;
}

/* Write the inner products of the centres of all lists with `projected` (width). */
EXPORT void pixmatcher_centre_scores(const Lists *lists, const float *projected, float *scores) {
    for (int64_t list = 0; list < lists->count; list++)
        scores[list] = centre_score(lists->centres + list * lists->width, projected, lists->width);
}

/* The score at a `reach` below the highest of `count` scores, as a multiple of the way to their mean. */
EXPORT float pixmatcher_lowest_within(const float *scores, int64_t count, float reach) {
    float highest = scores[0];
    double sum = 0;
    for (int64_t i = 0; i < count; i++) {
        highest = scores[i] > highest ? scores[i] : highest;
        sum += scores[i];
    }
    return highest - reach * (highest - (float)(sum / (double)count));
}

/* Find the `k` rows with the highest inner products with the query, best first, equal ones in ascending order of rows.

   The lists whose `centre_scores` are `lowest` or more are searched, and the stored rows of the `count` best by their
   codes are compared with `query` (dimension). The row `first_row` is the first of `values`; if there are no `values`,
   the codes decide. Return how many rows are written, or -1 if there is no memory. Rows are allowed as in `scan_lists`. */
EXPORT int64_t pixmatcher_search_lists(const Lists *lists, const float *projected, const float *centre_scores,
                                       float lowest, const uint8_t *allowed, int64_t allowed_rows, int64_t count,
                                       const uint16_t *values, int64_t first_row, int64_t dimension,
                                       const double *query, int64_t k, float *scores, int64_t *rows) {
    enum { FIRST_LISTS = 16, AHEAD = 8, LINE = 64 };
    Candidate *order = malloc(((size_t)lists->count + 4 * (size_t)count) * sizeof *order);
    if (!order) return -1;
    int64_t visited = 0;
    for (int64_t list = 0; list < lists->count; list++)
        if (centre_scores[list] >= lowest) order[visited++] = (Candidate){centre_scores[list], list};
    /* Rows of the nearest lists come first, so that fewer of the others are examined. */
    if (visited > FIRST_LISTS) select_best(order, visited, FIRST_LISTS);
    Candidate *found = order + lists->count;
    count = scan_lists(lists, order, visited, projected, allowed, allowed_rows, count, found);
    for (int64_t i = -AHEAD; values && i < count; i++) {
        if (i + AHEAD < count) {
            const char *next = (const char *)(values + (found[i + AHEAD].number - first_row) * dimension);
            for (int64_t byte = 0; byte < 2 * dimension; byte += LINE) __builtin_prefetch(next + byte);
        }
        if (i >= 0)
            found[i].score = (float)row_score(values + (found[i].number - first_row) * dimension, query, dimension);
    }
    if (k < count) select_best(found, count, k);
    else k = count;
    qsort(found, (size_t)k, sizeof *found, by_score);
    for (int64_t i = 0; i < k; i++) {
        scores[i] = found[i].score;
        rows[i] = found[i].number;
    }
    free(order);
    return k;
}
