/* A JPEG at an eighth of its width and height, from what is needed for that alone.
 *
 * At this scale a pixel of brightness is the mean of a block of 8 x 8 pixels, which a block begins with. What follows
 * in it only has to be passed over, and a table of how long the next few codes are together does so several at a time.
 * Where colour is stored at half the scale, its blocks are decoded, and become 2 x 2 pixels each.
 *
 * The pixels are those of libjpeg at the scale 1/8, bit for bit: the reduced transforms, the conversion of colours and
 * their rounding are the same. Only what is usual is decoded: sequential, Huffman coded, 8 bits, grey or YCbCr, one
 * scan, no damage. Whatever else is found ends the work with 0, and the caller decodes with libjpeg, which knows what
 * to do with it.
 *
 * The bytes are those of strangers. Nothing is read beyond them: codes are read from a copy that ends with more zeros
 * than the longest unit of blocks can take, and where the reader stands is checked after each unit.
 *
 * Sources: ITU-T T.81 (the format) and T.871 (its colours); Loeffler, Ligtenberg and Moschytz, "Practical fast 1-D DCT
 * algorithms with 11 multiplications", 1989, which libjpeg reduces to 2 values.
 */

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum {
    LOOKED_UP = 12,            /* bits */
    LONGEST_CODE = 16,         /* bits */
    LONGEST_UNIT = 6 * 64 * 4, /* bytes: 6 blocks of 64 values, each of a code and fewer bits behind it */
    MOST_COMPONENTS = 3,
    PEEKED = 57,               /* bits at least */
    ENDS = 128,
    NO_LEAP = 256 << 5,
};

typedef struct {
    int defined;
    /* By the next bits: the length of the code there, 0 where it is longer, and its symbol. */
    uint8_t code_bits[1 << LOOKED_UP];
    uint8_t symbol[1 << LOOKED_UP];
    /* Longer ones (T.81, F.2.2.3): what is beyond the codes of each length, and where the symbols of these are. */
    int32_t beyond[LONGEST_CODE + 1];
    int32_t first[LONGEST_CODE + 1];
    uint8_t symbols[256];
    /* By the next bits, where these hold code and value whole: the value, and below it a byte for the values that are
     * then passed, itself among them, and one for the bits taken; 0 where they do not. */
    int32_t whole[1 << LOOKED_UP];
} Codes;

/* What the codes at the next bits amount to, as many as these tell: in 5 bits how many bits they take, and above them
 * the values passed, and ENDS if the block ends there; NO_LEAP if they tell of none. */
typedef uint16_t Leap;

typedef struct {
    int across, down; /* blocks in a unit */
    int quantiser_number, dc, ac;
    const int16_t *quantiser;
    Codes *first_codes, *codes;
    Leap *leaps;
    /* By the next bits, at the beginning of a block: its first value, as in `whole`, with what they tell of the rest. */
    int32_t openings[1 << LOOKED_UP];
    int wide; /* whether a block becomes 2 x 2 pixels */
    uint8_t *plane;
    size_t stride;
    int32_t previous;
} Component;

typedef struct {
    const uint8_t *at, *end;
    int width, height;
    int components, restart;
    int jfif, adobe;
    int16_t quantisers[4][64]; /* row after row */
    int quantiser_defined[4];
    Codes dc[4], ac[4];
    Leap leaps[4][1 << LOOKED_UP];
    Component component[MOST_COMPONENTS];
} Picture;

/* Where the values of a block lie, row after row, in the order of the file. */
static const uint8_t natural[64] = {
    0,  1,  8,  16, 9,  2,  3,  10, 17, 24, 32, 25, 18, 11, 4,  5,  12, 19, 26, 33, 40, 48,
    41, 34, 27, 20, 13, 6,  7,  14, 21, 28, 35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23,
    30, 37, 44, 51, 58, 59, 52, 45, 38, 31, 39, 46, 53, 60, 61, 54, 47, 55, 62, 63,
};

static int word(const uint8_t *at) { return at[0] << 8 | at[1]; }

/* ---- What stands before the picture: each returns whether it is as usual. ---- */

static int read_quantisers(Picture *picture, const uint8_t *at, const uint8_t *end) {
    while (at < end) {
        int bytes = (*at >> 4) + 1, number = *at & 15;
        at++;
        if (bytes > 2 || number > 3 || end - at < 64 * bytes) return 0;
        for (int place = 0; place < 64; place++, at += bytes) {
            int step = bytes == 2 ? word(at) : *at;
            if (step > 32767) return 0;
            picture->quantisers[number][natural[place]] = step;
        }
        picture->quantiser_defined[number] = 1;
    }
    return 1;
}

static int read_codes(Picture *picture, const uint8_t *at, const uint8_t *end) {
    while (at < end) {
        if (end - at < 17) return 0;
        int class = *at >> 4, number = *at & 15;
        if (class > 1 || number > 3) return 0;
        Codes *codes = (class ? picture->ac : picture->dc) + number;
        const uint8_t *counts = at + 1, *symbols = at + 17;
        int total = 0;
        for (int bits = 0; bits < LONGEST_CODE; bits++) total += counts[bits];
        if (total > 256 || end - symbols < total) return 0;
        memset(codes, 0, sizeof *codes);
        memcpy(codes->symbols, symbols, total);
        int32_t code = 0;
        int used = 0;
        for (int bits = 1; bits <= LONGEST_CODE; bits++, code <<= 1) {
            codes->first[bits] = used - code;
            for (int n = counts[bits - 1]; n > 0; n--, code++, used++) {
                if (code + 1 >= 1 << bits) return 0; /* none is all ones */
                if (!class && codes->symbols[used] > 15) return 0;
                if (bits > LOOKED_UP) continue;
                int spare = LOOKED_UP - bits;
                memset(codes->code_bits + (code << spare), bits, (size_t)1 << spare);
                memset(codes->symbol + (code << spare), codes->symbols[used], (size_t)1 << spare);
            }
            codes->beyond[bits] = code << (LONGEST_CODE - bits);
        }
        codes->defined = 1;
        at = symbols + total;
    }
    return 1;
}

static int read_frame(Picture *picture, const uint8_t *at, const uint8_t *end) {
    if (picture->components || end - at < 6 || at[0] != 8) return 0;
    picture->height = word(at + 1);
    picture->width = word(at + 3);
    int count = at[5];
    if (!picture->height || !picture->width || (count != 1 && count != 3) || end - at != 6 + 3 * count) return 0;
    at += 6;
    for (int n = 0; n < count; n++, at += 3) {
        Component *component = picture->component + n;
        component->across = at[1] >> 4;
        component->down = at[1] & 15;
        component->quantiser_number = at[2];
        /* The usual numbers: with others, it may be that these are no YCbCr. */
        if (at[0] != n + 1 || component->quantiser_number > 3) return 0;
        if (n ? component->across != 1 || component->down != 1
              : component->across < 1 || component->across > 2 || component->down < 1 || component->down > 2)
            return 0;
    }
    if (count == 1) picture->component[0].across = picture->component[0].down = 1; /* a unit is one block then */
    picture->components = count;
    return 1;
}

static int read_scan(Picture *picture, const uint8_t *at, const uint8_t *end) {
    int count = picture->components;
    if (!count || end - at != 4 + 2 * count || *at++ != count) return 0;
    for (int n = 0; n < count; n++, at += 2) {
        Component *component = picture->component + n;
        component->dc = at[1] >> 4;
        component->ac = at[1] & 15;
        if (at[0] != n + 1 || component->dc > 3 || component->ac > 3) return 0;
        if (!picture->dc[component->dc].defined || !picture->ac[component->ac].defined) return 0;
        if (!picture->quantiser_defined[component->quantiser_number]) return 0;
    }
    return at[0] == 0 && at[1] == 63 && at[2] == 0;
}

/* Read up to the data of the scan. */
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
            if (!read_frame(picture, inside, after)) return 0;
        } else if (marker == 0xc4) {
            if (!read_codes(picture, inside, after)) return 0;
        } else if (marker == 0xdb) {
            if (!read_quantisers(picture, inside, after)) return 0;
        } else if (marker == 0xdd) {
            if (length != 4) return 0;
            picture->restart = word(inside);
        } else if (marker == 0xda) {
            picture->at = after;
            return read_scan(picture, inside, after);
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

/* ---- Codes ---- */

/* The value of the next `count` bits (T.81, F.2.2.1). */
static inline int extended(uint64_t bits, int count) {
    int value = (int)(bits >> 1 >> (63 - count));
    return value + ((int)((int64_t)~bits >> 63) & (1 - (1 << count)));
}

/* The code at the beginning of 16 bits: its length; 0 if there is none. */
static int code_at(const Codes *codes, uint32_t bits16, int *symbol) {
    int place = bits16 >> (LONGEST_CODE - LOOKED_UP), bits = codes->code_bits[place];
    if (bits) {
        *symbol = codes->symbol[place];
        return bits;
    }
    for (bits = LOOKED_UP + 1; bits <= LONGEST_CODE; bits++)
        if ((int32_t)bits16 < codes->beyond[bits]) {
            *symbol = codes->symbols[(codes->first[bits] + (int32_t)(bits16 >> (LONGEST_CODE - bits))) & 255];
            return bits;
        }
    return 0;
}

/* What a symbol of the values behind the first means: values passed, bits of its own. Returns 0 if it is unusual. */
static int meaning(int symbol, int *values, int *bits, int *ends) {
    int zeros = symbol >> 4;
    *bits = symbol & 15;
    *ends = !symbol;
    *values = symbol ? zeros + 1 : 0;
    return *bits ? *bits <= 10 : !zeros || zeros == 15;
}

static void make_whole(Codes *codes) {
    for (int place = 0; place < 1 << LOOKED_UP; place++) {
        int bits = codes->code_bits[place], values, own, ends;
        codes->whole[place] = 0;
        if (!bits || !meaning(codes->symbol[place], &values, &own, &ends) || ends || bits + own > LOOKED_UP) continue;
        int value = extended((uint64_t)place << (64 - LOOKED_UP + bits), own);
        codes->whole[place] = value * (1 << 16) | values << 8 | (bits + own);
    }
}

/* Follow the codes in the bits of `place`, from those on that are taken; returns what is taken then. */
static int follow(const Codes *codes, int place, int taken, int *passed) {
    *passed = 0;
    while (taken < LOOKED_UP && *passed < 63) {
        int rest = (place << taken) & ((1 << LOOKED_UP) - 1), code = codes->code_bits[rest];
        int values, own, ends;
        if (!code || taken + code > LOOKED_UP || !meaning(codes->symbol[rest], &values, &own, &ends)) break;
        if (*passed + values > 63) break;
        taken += code + own;
        *passed += ends ? ENDS : values;
    }
    return taken;
}

static void make_leaps(const Codes *codes, Leap *leaps) {
    for (int place = 0; place < 1 << LOOKED_UP; place++) {
        int passed, taken = follow(codes, place, 0, &passed);
        leaps[place] = taken ? passed << 5 | taken : NO_LEAP;
    }
}

/* Where the other values are wanted too, only those blocks are told of that have none. */
static void make_openings(Component *component) {
    const Codes *first = component->first_codes;
    for (int place = 0; place < 1 << LOOKED_UP; place++) {
        int bits = first->code_bits[place], size = first->symbol[place], passed;
        component->openings[place] = 0;
        if (!bits || bits + size > LOOKED_UP) continue;
        int value = extended((uint64_t)place << (64 - LOOKED_UP + bits), size);
        int taken = follow(component->codes, place, bits + size, &passed);
        if (component->wide && passed != ENDS) taken = bits + size, passed = 0;
        component->openings[place] = value * (1 << 16) | passed << 8 | taken;
    }
}

/* The next bits, PEEKED of them or more, at the top of a word. */
static inline uint64_t peek(const uint8_t *data, size_t position) {
    uint64_t bits;
    memcpy(&bits, data + (position >> 3), 8);
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    bits = __builtin_bswap64(bits);
#endif
    return bits << (position & 7);
}

/* ---- Blocks: each reads one from `position` on, and returns where it ends, or 0 if it is unusual. ---- */

/* Not 0 for a value that is far from all that pixels become. What is not has room for the transform in 32 bits. */
static inline int32_t far_off(int32_t value) { return (value + 8192) & ~16383; }

/* The end of a block of which `passed` values are passed behind the first; `bits` lie at `position`, without `taken`. */
static inline size_t pass_over(const Component *component, const uint8_t *data, size_t position, uint64_t bits,
                               unsigned taken, unsigned passed) {
    const Leap *leaps = component->leaps;
    for (;;) {
        unsigned leap = 0;
        while (taken <= PEEKED - LOOKED_UP) {
            leap = leaps[bits >> (64 - LOOKED_UP)];
            passed += leap >> 5;
            if (passed >= 63) break;
            taken += leap & 31;
            bits <<= leap & 31;
        }
        position += taken;
        if (passed >= 63) {
            if (passed == 63 || (passed >= ENDS && passed < ENDS + 63)) return position + (leap & 31);
            /* The leap went too far, or there was none: one code. */
            passed -= leap >> 5;
            int symbol, values, own, ends;
            int length = code_at(component->codes, (uint32_t)(peek(data, position) >> 48), &symbol);
            if (!length || !meaning(symbol, &values, &own, &ends) || passed + values > 63) return 0;
            position += length + own;
            passed += values;
            if (ends || passed == 63) return position;
        }
        bits = peek(data, position);
        taken = 0;
    }
}

static inline size_t read_rest(const Component *component, const uint8_t *data, size_t position, int16_t *block,
                               int *flat) {
    const Codes *codes = component->codes;
    *flat = 1;
    for (int next = 1; next < 64; next++) {
        uint64_t bits = peek(data, position);
        int32_t whole = codes->whole[bits >> (64 - LOOKED_UP)];
        int value;
        if (whole) {
            value = whole >> 16;
            next += (whole >> 8 & 255) - 1;
            position += whole & 255;
        } else {
            int symbol, values, own, ends, length = code_at(codes, (uint32_t)(bits >> 48), &symbol);
            if (!length || !meaning(symbol, &values, &own, &ends)) return 0;
            position += length + own;
            if (ends) break;
            value = extended(bits << length, own);
            next += values - 1;
        }
        if (next > 63) return 0;
        if (*flat) memset(block, 0, 64 * sizeof *block);
        *flat = 0;
        value *= component->quantiser[natural[next]];
        if (far_off(value)) return 0;
        block[natural[next]] = value;
    }
    return position;
}

/* ---- Pixels ---- */

/* A pixel around 128; what is far from it is damage, which libjpeg has its own way with. */
static inline int put_pixel(uint8_t *pixel, int32_t value) {
    *pixel = value < -128 ? 0 : value > 127 ? 255 : value + 128;
    return value >= -512 && value < 512;
}

/* The odd part of a transform that leaves 2 values of 8, from the values 1, 3, 5 and 7. */
static inline int32_t odd_part(int16_t v1, int16_t v3, int16_t v5, int16_t v7) {
    return 29692 * v1 - 10426 * v3 + 6967 * v5 - 5906 * v7;
}

/* A block of 8 x 8 values as 2 x 2 pixels; 0 if there is damage. */
static int put_four(const int16_t *block, uint8_t *pixels, size_t stride) {
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
    unsigned taken, passed = 0;
    uint64_t bits = peek(data, position);
    int32_t opening = component->openings[bits >> (64 - LOOKED_UP)];
    if (opening) {
        difference = opening >> 16;
        passed = opening >> 8 & 255;
        taken = opening & 255;
    } else {
        int size, length = code_at(component->first_codes, (uint32_t)(bits >> 48), &size);
        if (!length || size > 11) return 0;
        difference = extended(bits << length, size);
        taken = length + size;
    }
    if (passed >= 63)
        position += taken;
    else if (component->wide)
        position = read_rest(component, data, position + taken, block, &flat);
    else
        position = pass_over(component, data, position, bits << taken, taken, passed);
    int32_t previous = component->previous + difference, first = previous * component->quantiser[0];
    if (!position || far_off(previous) || far_off(first)) return 0;
    component->previous = previous;
    if (!flat) {
        block[0] = first;
        return put_four(block, pixels, component->stride) ? position : 0;
    }
    if (!put_pixel(pixels, (first + 4) >> 3)) return 0;
    if (component->wide) pixels[1] = pixels[component->stride] = pixels[component->stride + 1] = *pixels;
    return position;
}

/* ---- The scan ---- */

/* Copy the data of a scan, without what is only there to tell it from markers, up to the next marker, and leave `at`
 * behind that. Returns the marker, and in `size` the bytes written. */
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

static int read_units(Picture *picture, uint8_t *data) {
    const Component *first = picture->component;
    size_t across = (picture->width + 8 * first->across - 1) / (8 * first->across);
    size_t down = (picture->height + 8 * first->down - 1) / (8 * first->down);
    size_t total = across * down, unit = 0, row = 0, column = 0;
    size_t interval = picture->restart ? (size_t)picture->restart : total;
    const uint8_t *at = picture->at;
    for (int part = 0; unit < total; part++) {
        size_t size = 0, position = 0, until = unit + interval < total ? unit + interval : total;
        int marker = copy_data(&at, picture->end, data, &size);
        if (marker != (until == total ? 0xd9 : 0xd0 + part % 8)) return 0;
        memset(data + size, 0, LONGEST_UNIT + 8);
        for (int n = 0; n < picture->components; n++) picture->component[n].previous = 0;
        for (; unit < until; unit++) {
            for (int n = 0; n < picture->components; n++) {
                Component *component = picture->component + n;
                int side = component->wide ? 2 : 1;
                uint8_t *pixels = component->plane + side * (row * component->down * component->stride);
                pixels += side * (column * component->across);
                for (int y = 0; y < component->down; y++, pixels += component->stride)
                    for (int x = 0; x < component->across; x++) {
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

/* A row of pixels (T.871, in the fixed point of libjpeg; what is more than 16 bits of a factor is added beside). */
static void write_row(const uint8_t *grey, const uint8_t *blue, const uint8_t *red, int fewer, int width,
                      uint8_t *out) {
    enum { AT_ONCE = 64 };
    uint8_t part[3][AT_ONCE];
    for (int begun = 0; begun < width; begun += AT_ONCE) {
        int count = width - begun < AT_ONCE ? width - begun : AT_ONCE;
        int16_t cb[AT_ONCE], cr[AT_ONCE];
        for (int n = 0; n < count; n++) {
            cb[n] = blue[(begun + n) >> fewer] - 128;
            cr[n] = red[(begun + n) >> fewer] - 128;
        }
        for (int n = 0; n < count; n++) {
            int y = grey[begun + n];
            part[0][n] = limited(y + cr[n] + ((26345 * cr[n] + 32768) >> 16));
            part[1][n] = limited(y - cr[n] + ((-22554 * cb[n] + 18734 * cr[n] + 32768) >> 16));
            part[2][n] = limited(y + 2 * cb[n] + ((-14942 * cb[n] + 32768) >> 16));
        }
        for (int n = 0; n < count; n++, out += 3) out[0] = part[0][n], out[1] = part[1][n], out[2] = part[2][n];
    }
}

static void write_pixels(const Picture *picture, int width, int height, uint8_t *out) {
    const Component *grey = picture->component, *blue = grey + 1, *red = grey + 2;
    int fewer_columns = !blue->wide && grey->across == 2, fewer_rows = !blue->wide && grey->down == 2;
    for (int y = 0; y < height; y++) {
        const uint8_t *row = grey->plane + y * grey->stride;
        size_t skipped = (y >> fewer_rows) * blue->stride;
        if (picture->components == 1)
            memcpy(out, row, width);
        else
            write_row(row, blue->plane + skipped, red->plane + skipped, fewer_columns, width, out);
        out += (size_t)width * picture->components;
    }
}

/* Decode `data` at an eighth of its scale; `out` has room for `width` x `height` pixels of 1 byte (grey) or 3 (RGB).
 * Returns 1, or 0 if it is not what is decoded here, or has another size: `out` then holds anything. */
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
    Component *first = picture->component;
    size_t across = (picture->width + 8 * first->across - 1) / (8 * first->across);
    size_t down = (picture->height + 8 * first->down - 1) / (8 * first->down);
    size_t planes = 0;
    for (int n = 0; n < channels; n++) {
        Component *component = first + n;
        component->wide = n && first->across == 2 && first->down == 2;
        component->stride = across * component->across * (component->wide ? 2 : 1);
        planes += component->stride * down * component->down * (component->wide ? 2 : 1);
        component->quantiser = picture->quantisers[component->quantiser_number];
        component->first_codes = picture->dc + component->dc;
        component->codes = picture->ac + component->ac;
        component->leaps = picture->leaps[component->ac];
        if (component->wide)
            make_whole(component->codes);
        else
            make_leaps(component->codes, component->leaps);
        make_openings(component);
    }
    size_t data_size = picture->end - picture->at + LONGEST_UNIT + 8;
    memory = malloc(planes + data_size);
    if (!memory) goto end;
    uint8_t *plane = memory + data_size;
    for (int n = 0; n < channels; n++) {
        first[n].plane = plane;
        plane += first[n].stride * down * first[n].down * (first[n].wide ? 2 : 1);
    }
    if (!read_units(picture, memory)) goto end;
    write_pixels(picture, width, height, out);
    done = 1;
end:
    free(memory);
    free(picture);
    return done;
}
