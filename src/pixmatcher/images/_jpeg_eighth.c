/* Decode a JPEG at 1/8 of its width and height, and decode nothing that this scale does not need.
 *
 * At this scale a pixel of luma is the mean of a block of 8 x 8 pixels, which is the DC coefficient of the block. The
 * AC coefficients after it are only skipped, several at a time, with a table of the total length of the next few
 * Huffman codes. If chroma is stored at half the scale, its blocks are decoded, and become 2 x 2 pixels each.
 *
 * The pixels are the same as those of libjpeg-turbo at the scale 1/8, bit for bit: the reduced transforms, the colour
 * conversion and the rounding are the same. Only usual files are decoded: sequential, Huffman coded, 8 bits, grey or
 * YCbCr, one scan, not damaged. For any other file the result is 0, and the caller decodes it with libjpeg-turbo.
 *
 * The data is not trusted. Nothing is read beyond its end: codes are read from a copy that ends with more zeros than
 * the longest MCU (minimum coded unit) can take, and the position is checked after each MCU.
 *
 * Sources: ITU-T T.81 (the format) and T.871 (its colours); Loeffler, Ligtenberg and Moschytz, "Practical fast 1-D DCT
 * algorithms with 11 multiplications", 1989, which libjpeg reduces to 2 values.
 */

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum {
    MAX_SIDE = 65500, /* pixels; libjpeg refuses more */
    MAX_COMPONENTS = 3,
    MAX_HUFFMAN_TABLES = 32, /* in one file, which needs 4; reading one takes more time than its length suggests */
    MAX_CODE_BITS = 16,
    MAX_MCU_BYTES = 6 * 64 * 4, /* 6 blocks of 64 coefficients, each has a code, and fewer bits than that after it */
    LOOKUP_BITS = 12,
    LOOKUP_SIZE = 1 << LOOKUP_BITS,
    PEEK_BITS = 57,
    END_OF_BLOCK = 128,
    NO_SKIP = 256 << 5,
};

typedef struct {
    int defined;
    /* Indexed by the next bits: the length of the code that they begin with (0 if it is longer), and its symbol. */
    uint8_t code_bits[LOOKUP_SIZE];
    uint8_t symbol[LOOKUP_SIZE];
    /* For longer codes (T.81, F.2.2.3): the first value above the codes of each length, and where their symbols are. */
    int32_t code_limits[MAX_CODE_BITS + 1];
    int32_t symbol_offsets[MAX_CODE_BITS + 1];
    uint8_t symbols[256];
    /* Indexed by the next bits, if they contain a complete AC coefficient: its value in the upper 16 bits, then a byte
     * for the number of coefficients up to it, and a byte for the bits used; 0 otherwise. */
    int32_t coefficient[LOOKUP_SIZE];
} HuffmanTable;

/* All codes together that the next bits contain completely: in the lower 5 bits the bits that they use, and above these
 * the number of AC coefficients, plus END_OF_BLOCK if the block ends there; NO_SKIP if they contain no whole code. */
typedef uint16_t Skip;

typedef struct {
    int h_sampling, v_sampling; /* blocks in an MCU */
    int quantization_number, dc_number, ac_number;
    const int16_t *quantization;
    const HuffmanTable *dc_table, *ac_table;
    const Skip *skips;
    /* Indexed by the next bits at the beginning of a block: the difference of DC in the upper 16 bits, then a byte for
     * the AC coefficients that are skipped after it, plus END_OF_BLOCK if the block ends there, and a byte for the bits
     * used; 0 if the bits do not contain the complete difference. */
    int32_t block_start[LOOKUP_SIZE];
    int doubled; /* whether a block becomes 2 x 2 pixels */
    uint8_t *plane;
    size_t stride;
    int32_t predictor;
} Component;

typedef struct {
    const uint8_t *at, *end;
    int width, height;
    int components, restart_interval;
    int jfif, adobe;
    int16_t quantization[4][64]; /* row by row */
    int quantization_defined[4];
    int huffman_tables;
    HuffmanTable dc[4], ac[4];
    Skip skips[4][LOOKUP_SIZE];
    Component component[MAX_COMPONENTS];
} Picture;

/* The position in a block, counted row by row, of each coefficient in the order of the file. */
static const uint8_t zigzag[64] = {
    0,  1,  8,  16, 9,  2,  3,  10, 17, 24, 32, 25, 18, 11, 4,  5,  12, 19, 26, 33, 40, 48,
    41, 34, 27, 20, 13, 6,  7,  14, 21, 28, 35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23,
    30, 37, 44, 51, 58, 59, 52, 45, 38, 31, 39, 46, 53, 60, 61, 54, 47, 55, 62, 63,
};

static int word(const uint8_t *at) { return at[0] << 8 | at[1]; }

/* ---- The headers: each function returns 0 if the header is not of the usual kind. ---- */

static int read_quantization_tables(Picture *picture, const uint8_t *at, const uint8_t *end) {
    while (at < end) {
        int bytes = (*at >> 4) + 1, number = *at & 15;
        at++;
        if (bytes > 2 || number > 3 || end - at < 64 * bytes) return 0;
        for (int place = 0; place < 64; place++, at += bytes) {
            int step = bytes == 2 ? word(at) : *at;
            if (step > 32767) return 0;
            picture->quantization[number][zigzag[place]] = step;
        }
        picture->quantization_defined[number] = 1;
    }
    return 1;
}

static int read_huffman_tables(Picture *picture, const uint8_t *at, const uint8_t *end) {
    while (at < end) {
        if (end - at < 17) return 0;
        int class = *at >> 4, number = *at & 15;
        if (class > 1 || number > 3) return 0;
        if (++picture->huffman_tables > MAX_HUFFMAN_TABLES) return 0;
        HuffmanTable *table = (class ? picture->ac : picture->dc) + number;
        const uint8_t *counts = at + 1, *symbols = at + 17;
        int total = 0;
        for (int bits = 0; bits < MAX_CODE_BITS; bits++) total += counts[bits];
        if (total > 256 || end - symbols < total) return 0;
        memset(table, 0, sizeof *table);
        memcpy(table->symbols, symbols, total);
        int32_t code = 0;
        int used = 0;
        for (int bits = 1; bits <= MAX_CODE_BITS; bits++, code <<= 1) {
            table->symbol_offsets[bits] = used - code;
            for (int n = counts[bits - 1]; n > 0; n--, code++, used++) {
                if (code + 1 >= 1 << bits) return 0; /* no code has only ones */
                if (!class && table->symbols[used] > 15) return 0;
                if (bits > LOOKUP_BITS) continue;
                int spare = LOOKUP_BITS - bits;
                memset(table->code_bits + (code << spare), bits, (size_t)1 << spare);
                memset(table->symbol + (code << spare), table->symbols[used], (size_t)1 << spare);
            }
            table->code_limits[bits] = code << (MAX_CODE_BITS - bits);
        }
        table->defined = 1;
        at = symbols + total;
    }
    return 1;
}

static int read_frame_header(Picture *picture, const uint8_t *at, const uint8_t *end) {
    if (picture->components || end - at < 6 || at[0] != 8) return 0;
    picture->height = word(at + 1);
    picture->width = word(at + 3);
    int count = at[5];
    if (picture->height > MAX_SIDE || picture->width > MAX_SIDE) return 0;
    if (!picture->height || !picture->width || (count != 1 && count != 3) || end - at != 6 + 3 * count) return 0;
    at += 6;
    for (int n = 0; n < count; n++, at += 3) {
        Component *component = picture->component + n;
        component->h_sampling = at[1] >> 4;
        component->v_sampling = at[1] & 15;
        component->quantization_number = at[2];
        /* The usual numbers; a file with other ones may not be YCbCr. */
        if (at[0] != n + 1 || component->quantization_number > 3) return 0;
        int most = n ? 1 : 2;
        if (component->h_sampling < 1 || component->h_sampling > most) return 0;
        if (component->v_sampling < 1 || component->v_sampling > most) return 0;
    }
    if (count == 1) picture->component[0].h_sampling = picture->component[0].v_sampling = 1; /* T.81, A.2.2 */
    picture->components = count;
    return 1;
}

static int read_scan_header(Picture *picture, const uint8_t *at, const uint8_t *end) {
    int count = picture->components;
    if (!count || end - at != 4 + 2 * count || *at++ != count) return 0;
    for (int n = 0; n < count; n++, at += 2) {
        Component *component = picture->component + n;
        component->dc_number = at[1] >> 4;
        component->ac_number = at[1] & 15;
        if (at[0] != n + 1 || component->dc_number > 3 || component->ac_number > 3) return 0;
        if (!picture->dc[component->dc_number].defined || !picture->ac[component->ac_number].defined) return 0;
        if (!picture->quantization_defined[component->quantization_number]) return 0;
    }
    return at[0] == 0 && at[1] == 63 && at[2] == 0;
}

/* Read all headers up to the data of the scan. */
static int read_header(Picture *picture) {
    const uint8_t *at = picture->at, *end = picture->end;
    if (end - at < 4 || at[0] != 0xff || at[1] != 0xd8) return 0;
    at += 2;
    for (;;) {
        if (end - at < 4 || at[0] != 0xff) return 0;
        int marker = at[1], length = word(at + 2);
        if (length < 2 || end - at - 2 < length) return 0;
        const uint8_t *inside = at + 4, *after = at + 2 + length;
        if (marker == 0xc0 || marker == 0xc1) {
            if (!read_frame_header(picture, inside, after)) return 0;
        } else if (marker == 0xc4) {
            if (!read_huffman_tables(picture, inside, after)) return 0;
        } else if (marker == 0xdb) {
            if (!read_quantization_tables(picture, inside, after)) return 0;
        } else if (marker == 0xdd) {
            if (length != 4) return 0;
            picture->restart_interval = word(inside);
        } else if (marker == 0xda) {
            picture->at = after;
            return read_scan_header(picture, inside, after);
        } else if (marker == 0xe0) {
            picture->jfif |= length >= 16 && !memcmp(inside, "JFIF", 5);
        } else if (marker == 0xee) {
            if (length >= 14 && !memcmp(inside, "Adobe", 5)) picture->adobe = inside[11] == 1 ? 1 : 2;
        } else if (!(marker >= 0xe1 && marker <= 0xef) && marker != 0xfe) {
            return 0;
        }
        at = after;
    }
}

/* ---- Huffman codes ---- */

/* Return the signed value of the next `count` bits (T.81, F.2.2.1). */
static inline int extended(uint64_t bits, int count) {
    int value = (int)(bits >> 1 >> (63 - count));
    return value + ((int)((int64_t)~bits >> 63) & (1 - (1 << count)));
}

/* Return the length of the code at the beginning of 16 bits, and its symbol; 0 if there is no such code. */
static int code_at(const HuffmanTable *table, uint32_t bits16, int *symbol) {
    int place = bits16 >> (MAX_CODE_BITS - LOOKUP_BITS), bits = table->code_bits[place];
    if (bits) {
        *symbol = table->symbol[place];
        return bits;
    }
    for (bits = LOOKUP_BITS + 1; bits <= MAX_CODE_BITS; bits++)
        if ((int32_t)bits16 < table->code_limits[bits]) {
            *symbol = table->symbols[(table->symbol_offsets[bits] + (int32_t)(bits16 >> (MAX_CODE_BITS - bits))) & 255];
            return bits;
        }
    return 0;
}

/* Return what an AC symbol means: number of coefficients, bits of the last one's value, end of block; 0 if unusual. */
static int meaning(int symbol, int *count, int *value_bits, int *ends) {
    int zeros = symbol >> 4;
    *value_bits = symbol & 15;
    *ends = !symbol;
    *count = symbol ? zeros + 1 : 0;
    return *value_bits ? *value_bits <= 10 : !zeros || zeros == 15;
}

static void make_coefficients(HuffmanTable *table) {
    for (int place = 0; place < LOOKUP_SIZE; place++) {
        int bits = table->code_bits[place], count, value_bits, ends;
        table->coefficient[place] = 0;
        if (!bits || !meaning(table->symbol[place], &count, &value_bits, &ends) || ends) continue;
        if (bits + value_bits > LOOKUP_BITS) continue;
        int value = extended((uint64_t)place << (64 - LOOKUP_BITS) << bits, value_bits);
        table->coefficient[place] = value * (1 << 16) | count << 8 | (bits + value_bits);
    }
}

/* Follow the AC codes in the bits of `place`, after the first `taken` bits; return the bits used then. */
static int follow_codes(const HuffmanTable *table, int place, int taken, int *skipped) {
    *skipped = 0;
    while (taken < LOOKUP_BITS && *skipped < 63) {
        int rest = (place << taken) & (LOOKUP_SIZE - 1), bits = table->code_bits[rest];
        int count, value_bits, ends;
        if (!bits || taken + bits > LOOKUP_BITS || !meaning(table->symbol[rest], &count, &value_bits, &ends)) break;
        if (*skipped + count > 63) break;
        taken += bits + value_bits;
        *skipped += ends ? END_OF_BLOCK : count;
    }
    return taken;
}

static void make_skips(const HuffmanTable *table, Skip *skips) {
    for (int place = 0; place < LOOKUP_SIZE; place++) {
        int skipped, taken = follow_codes(table, place, 0, &skipped);
        skips[place] = taken ? skipped << 5 | taken : NO_SKIP;
    }
}

/* If the AC coefficients are needed too, they are skipped here only for blocks that have none. */
static void make_block_starts(Component *component) {
    const HuffmanTable *table = component->dc_table;
    for (int place = 0; place < LOOKUP_SIZE; place++) {
        int bits = table->code_bits[place], value_bits = table->symbol[place], skipped;
        component->block_start[place] = 0;
        if (!bits || bits + value_bits > LOOKUP_BITS) continue;
        int value = extended((uint64_t)place << (64 - LOOKUP_BITS) << bits, value_bits);
        int taken = follow_codes(component->ac_table, place, bits + value_bits, &skipped);
        if (component->doubled && skipped != END_OF_BLOCK) taken = bits + value_bits, skipped = 0;
        component->block_start[place] = value * (1 << 16) | skipped << 8 | taken;
    }
}

/* Return the next bits, PEEK_BITS of them or more, at the top of a word. */
static inline uint64_t peek(const uint8_t *data, size_t position) {
    uint64_t bits;
    memcpy(&bits, data + (position >> 3), 8);
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    bits = __builtin_bswap64(bits);
#endif
    return bits << (position & 7);
}

/* ---- Blocks: each function reads a block at `position`, and returns where it ends, or 0 if it is unusual. ---- */

/* Return 0 unless the value is far out of the range of pixels. Values in that range do not overflow 32 bits in the
 * transform. */
static inline int32_t far_off(int32_t value) { return (value + 8192) & ~16383; }

/* Skip the rest of a block after its first `skipped` AC coefficients. `bits` are those at `position`, after the first
 * `taken` of them. */
static inline size_t skip_coefficients(const Component *component, const uint8_t *data, size_t position, uint64_t bits,
                                       unsigned taken, unsigned skipped) {
    const Skip *skips = component->skips;
    for (;;) {
        unsigned skip = 0;
        while (taken <= PEEK_BITS - LOOKUP_BITS) {
            skip = skips[bits >> (64 - LOOKUP_BITS)];
            skipped += skip >> 5;
            if (skipped >= 63) break;
            taken += skip & 31;
            bits <<= skip & 31;
        }
        position += taken;
        if (skipped >= 63) {
            int ends_here = skipped >= END_OF_BLOCK && skipped < END_OF_BLOCK + 63;
            if (skipped == 63 || ends_here) return position + (skip & 31);
            /* The codes went beyond the block, or there was no complete one: read a single code. */
            skipped -= skip >> 5;
            int symbol, count, value_bits, ends;
            int length = code_at(component->ac_table, (uint32_t)(peek(data, position) >> 48), &symbol);
            if (!length || !meaning(symbol, &count, &value_bits, &ends) || skipped + count > 63) return 0;
            position += length + value_bits;
            skipped += count;
            if (ends || skipped == 63) return position;
        }
        bits = peek(data, position);
        taken = 0;
    }
}

/* Read and dequantize the AC coefficients of a block. If all are 0, `flat` is set and the block is not written. */
static inline size_t read_coefficients(const Component *component, const uint8_t *data, size_t position,
                                       int16_t *block, int *flat) {
    const HuffmanTable *table = component->ac_table;
    *flat = 1;
    for (int next = 1; next < 64; next++) {
        uint64_t bits = peek(data, position);
        int32_t whole = table->coefficient[bits >> (64 - LOOKUP_BITS)];
        int value;
        if (whole) {
            value = whole >> 16;
            next += (whole >> 8 & 255) - 1;
            position += whole & 255;
        } else {
            int symbol, count, value_bits, ends, length = code_at(table, (uint32_t)(bits >> 48), &symbol);
            if (!length || !meaning(symbol, &count, &value_bits, &ends)) return 0;
            position += length + value_bits;
            if (ends) break;
            value = extended(bits << length, value_bits);
            next += count - 1;
        }
        if (next > 63) return 0;
        if (*flat) memset(block, 0, 64 * sizeof *block);
        *flat = 0;
        value *= component->quantization[zigzag[next]];
        if (far_off(value)) return 0;
        block[zigzag[next]] = value;
    }
    return position;
}

/* ---- Pixels ---- */

/* Write a pixel with the value + 128. Return 0 if it is far out of range: the file is damaged, and left to libjpeg. */
static inline int put_pixel(uint8_t *pixel, int32_t value) {
    *pixel = value < -128 ? 0 : value > 127 ? 255 : value + 128;
    return value >= -512 && value < 512;
}

/* Return the odd part of a transform that reduces 8 values to 2, from the values 1, 3, 5 and 7. */
static inline int32_t odd_part(int16_t v1, int16_t v3, int16_t v5, int16_t v7) {
    return 29692 * v1 - 10426 * v3 + 6967 * v5 - 5906 * v7;
}

/* Convert a block of 8 x 8 coefficients to 2 x 2 pixels; return 0 if the file is damaged. */
static int put_2x2(const int16_t *block, uint8_t *pixels, size_t stride) {
    int32_t rows[2][8], far = 0;
    for (int column = 0; column < 8; column++) {
        int32_t odd = odd_part(block[8 + column], block[24 + column], block[40 + column], block[56 + column]);
        int32_t even = block[column] * (1 << 15);
        rows[0][column] = (even + odd + (1 << 12)) >> 13;
        rows[1][column] = (even - odd + (1 << 12)) >> 13;
        far |= far_off(rows[0][column]) | far_off(rows[1][column]);
    }
    if (far) return 0;
    for (int row = 0; row < 2; row++, pixels += stride) {
        const int32_t *value = rows[row];
        int32_t odd = odd_part(value[1], value[3], value[5], value[7]), even = value[0] * (1 << 15);
        if (!put_pixel(pixels, (even + odd + (1 << 19)) >> 20)) return 0;
        if (!put_pixel(pixels + 1, (even - odd + (1 << 19)) >> 20)) return 0;
    }
    return 1;
}

static inline size_t read_block(Component *component, const uint8_t *data, size_t position, uint8_t *pixels) {
    int16_t block[64];
    int flat = 1, difference;
    unsigned taken, skipped = 0;
    uint64_t bits = peek(data, position);
    int32_t start = component->block_start[bits >> (64 - LOOKUP_BITS)];
    if (start) {
        difference = start >> 16;
        skipped = start >> 8 & 255;
        taken = start & 255;
    } else {
        int size, length = code_at(component->dc_table, (uint32_t)(bits >> 48), &size);
        if (!length || size > 11) return 0;
        difference = extended(bits << length, size);
        taken = length + size;
    }
    if (skipped >= 63)
        position += taken;
    else if (component->doubled)
        position = read_coefficients(component, data, position + taken, block, &flat);
    else
        position = skip_coefficients(component, data, position, bits << taken, taken, skipped);
    int32_t predictor = component->predictor + difference, mean = predictor * component->quantization[0];
    if (!position || far_off(predictor) || far_off(mean)) return 0;
    component->predictor = predictor;
    if (!flat) {
        block[0] = mean;
        return put_2x2(block, pixels, component->stride) ? position : 0;
    }
    if (!put_pixel(pixels, (mean + 4) >> 3)) return 0;
    if (component->doubled) pixels[1] = pixels[component->stride] = pixels[component->stride + 1] = *pixels;
    return position;
}

/* ---- The scan ---- */

/* Copy the data of a scan up to the next marker, without the bytes that only distinguish data from markers, and set
 * `at` after the marker. Returns the marker, and in `size` the number of bytes written. */
static int copy_data(const uint8_t **at, const uint8_t *end, uint8_t *copy, size_t *size) {
    const uint8_t *from = *at;
    uint8_t *to = copy;
    for (;;) {
        const uint8_t *stop = memchr(from, 0xff, end - from);
        if (!stop || end - stop < 2) return 0;
        size_t count = stop - from;
        memcpy(to, from, count);
        to += count;
        from = stop + 2;
        if (stop[1]) {
            *at = from;
            *size = to - copy;
            return stop[1];
        }
        *to++ = 0xff;
    }
}

/* Return the number of MCUs along a side of the image. */
static size_t mcus_in(int side, int sampling) { return (side + 8 * sampling - 1) / (8 * sampling); }

static int read_mcus(Picture *picture, uint8_t *data) {
    const Component *first = picture->component;
    size_t across = mcus_in(picture->width, first->h_sampling), down = mcus_in(picture->height, first->v_sampling);
    size_t total = across * down, mcu = 0, row = 0, column = 0;
    size_t interval = picture->restart_interval ? (size_t)picture->restart_interval : total;
    const uint8_t *at = picture->at;
    for (int part = 0; mcu < total; part++) {
        size_t size = 0, position = 0, until = mcu + interval < total ? mcu + interval : total;
        int marker = copy_data(&at, picture->end, data, &size);
        if (marker != (until == total ? 0xd9 : 0xd0 + part % 8)) return 0;
        memset(data + size, 0, MAX_MCU_BYTES + 8);
        for (int n = 0; n < picture->components; n++) picture->component[n].predictor = 0;
        for (; mcu < until; mcu++) {
            for (int n = 0; n < picture->components; n++) {
                Component *component = picture->component + n;
                int side = component->doubled ? 2 : 1;
                uint8_t *pixels = component->plane + side * (row * component->v_sampling * component->stride);
                pixels += side * (column * component->h_sampling);
                for (int y = 0; y < component->v_sampling; y++, pixels += component->stride)
                    for (int x = 0; x < component->h_sampling; x++) {
                        position = read_block(component, data, position, pixels + x);
                        if (!position) return 0;
                    }
            }
            if (position > 8 * size) return 0;
            if (++column == across) column = 0, row++;
        }
        if (8 * size - position > 7) return 0;
    }
    return 1;
}

static inline uint8_t limited(int value) { return value < 0 ? 0 : value > 255 ? 255 : value; }

/* Write a row of pixels (T.871, in the fixed point of libjpeg; the whole part of each factor is added separately). */
static void write_row(const uint8_t *luma, const uint8_t *blue, const uint8_t *red, int halved, int width,
                      uint8_t *out) {
    enum { AT_ONCE = 64 };
    uint8_t rgb[3][AT_ONCE];
    for (int begun = 0; begun < width; begun += AT_ONCE) {
        int count = width - begun < AT_ONCE ? width - begun : AT_ONCE;
        int16_t cb[AT_ONCE], cr[AT_ONCE];
        for (int n = 0; n < count; n++) {
            cb[n] = blue[(begun + n) >> halved] - 128;
            cr[n] = red[(begun + n) >> halved] - 128;
        }
        for (int n = 0; n < count; n++) {
            int y = luma[begun + n];
            rgb[0][n] = limited(y + cr[n] + ((26345 * cr[n] + 32768) >> 16));
            rgb[1][n] = limited(y - cr[n] + ((-22554 * cb[n] + 18734 * cr[n] + 32768) >> 16));
            rgb[2][n] = limited(y + 2 * cb[n] + ((-14942 * cb[n] + 32768) >> 16));
        }
        for (int n = 0; n < count; n++, out += 3) out[0] = rgb[0][n], out[1] = rgb[1][n], out[2] = rgb[2][n];
    }
}

static void write_pixels(const Picture *picture, int width, int height, uint8_t *out) {
    const Component *luma = picture->component, *blue = luma + 1, *red = luma + 2;
    int halved_columns = !blue->doubled && luma->h_sampling == 2;
    int halved_rows = !blue->doubled && luma->v_sampling == 2;
    for (int y = 0; y < height; y++) {
        const uint8_t *row = luma->plane + y * luma->stride;
        size_t above = (y >> halved_rows) * blue->stride;
        if (picture->components == 1)
            memcpy(out, row, width);
        else
            write_row(row, blue->plane + above, red->plane + above, halved_columns, width, out);
        out += (size_t)width * picture->components;
    }
}

/* Decode `data` at the scale 1/8. `out` has room for `width` x `height` pixels of 1 byte (grey) or 3 bytes (RGB).
 * Returns 1, or 0 if the file is not of the usual kind or has another size; the content of `out` is undefined then. */
__attribute__((visibility("default"))) int
pixmatcher_eighth(const uint8_t *data, size_t length, int width, int height, int channels, uint8_t *out) {
    Picture *picture = calloc(1, sizeof *picture);
    uint8_t *memory = NULL;
    int done = 0;
    if (!picture) return 0;
    picture->at = data;
    picture->end = data + length;
    if (!read_header(picture) || picture->components != channels) goto end;
    if (width != (picture->width + 7) / 8 || height != (picture->height + 7) / 8) goto end;
    if (channels == 3 && !picture->jfif && picture->adobe == 2) goto end; /* stored as RGB */
    Component *luma = picture->component;
    size_t across = mcus_in(picture->width, luma->h_sampling), down = mcus_in(picture->height, luma->v_sampling);
    size_t data_size = picture->end - picture->at + MAX_MCU_BYTES + 8, size = data_size, planes[MAX_COMPONENTS];
    for (int n = 0; n < channels; n++) {
        Component *component = luma + n;
        HuffmanTable *ac_table = picture->ac + component->ac_number;
        Skip *skips = picture->skips[component->ac_number];
        component->doubled = n && luma->h_sampling == 2 && luma->v_sampling == 2;
        component->quantization = picture->quantization[component->quantization_number];
        component->dc_table = picture->dc + component->dc_number;
        component->ac_table = ac_table;
        component->skips = skips;
        if (component->doubled)
            make_coefficients(ac_table);
        else
            make_skips(ac_table, skips);
        make_block_starts(component);
        int side = component->doubled ? 2 : 1;
        component->stride = across * component->h_sampling * side;
        planes[n] = size;
        size += component->stride * down * component->v_sampling * side;
    }
    memory = malloc(size);
    if (!memory) goto end;
    for (int n = 0; n < channels; n++) luma[n].plane = memory + planes[n];
    if (!read_mcus(picture, memory)) goto end;
    write_pixels(picture, width, height, out);
    done = 1;
end:
    free(memory);
    free(picture);
    return done;
}
