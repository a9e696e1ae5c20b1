/* json_scan.c - see json_scan.h. */
#include "io/json_scan.h"

#include <string.h>

enum { DEPTH_MAX = 200, NUMBER_MAX = 60 }; /* cJSON's limits are 1000 and 63 */

struct cursor {
    struct mm_json_scan *scan;
    const unsigned char *text, *at, *end;
    size_t depth;
};

static bool fail(struct cursor *c, const unsigned char *at, const char *why) {
    if (!c->scan->why) {
        c->scan->why = why;
        c->scan->fault = (size_t)(at - c->text);
    }
    return false;
}

static void keep(struct mm_json_places *places, size_t at) {
    if ((places->n & (places->n - 1)) == 0) /* 0 or a power of two: full */
        places->at = mm_realloc(places->at, (places->n ? 2 * places->n : 1) * sizeof *places->at);
    places->at[places->n++] = at;
}

static int peek(const struct cursor *c) {
    return c->at < c->end ? *c->at : -1;
}

static void skip_space(struct cursor *c) {
    while (c->at < c->end && memchr(" \t\r\n", *c->at, 4))
        c->at++;
}

/* The number of bytes of the UTF-8 character that starts at `at`; 0 if none does. */
static size_t utf8(const unsigned char *at, const unsigned char *end) {
    size_t n = *at < 0x80 ? 1 : *at >= 0xf0 ? 4 : *at >= 0xe0 ? 3 : *at >= 0xc2 ? 2 : 0;
    if (n == 0 || *at > 0xf4 || (size_t)(end - at) < n)
        return 0;
    uint32_t code = n == 1 ? *at : *at & (0x7fu >> n);
    for (size_t i = 1; i < n; i++) {
        if ((at[i] & 0xc0) != 0x80)
            return 0;
        code = code << 6 | (at[i] & 0x3f);
    }
    bool shortest = n < 3 || code >= (n == 3 ? 0x800u : 0x10000u);
    return shortest && code <= 0x10ffff && (code < 0xd800 || code > 0xdfff) ? n : 0;
}

/* The value of the four hexadecimal digits behind "\u"; -1 if they are none. */
static long hex4(const struct cursor *c, const unsigned char *at) {
    long value = 0;
    if (c->end - at < 6 || at[0] != '\\' || at[1] != 'u')
        return -1;
    for (size_t i = 2; i < 6; i++) {
        static const char hex[] = "0123456789abcdefABCDEF";
        const char *digit = at[i] ? strchr(hex, at[i]) : NULL;
        if (!digit)
            return -1;
        value = 16 * value + (digit - hex < 16 ? digit - hex : digit - hex - 6);
    }
    return value;
}

static bool escape(struct cursor *c) {
    const unsigned char *start = c->at;
    if (c->end - start < 2 || !start[1] || !strchr("\"\\/bfnrtu", start[1]))
        return fail(c, start, "no such escape in a string");
    if (start[1] != 'u') {
        c->at += 2;
        return true;
    }
    long code = hex4(c, start);
    if (code < 0)
        return fail(c, start, "no such escape in a string");
    if (code == 0)
        return fail(c, start, "a NUL character in a string");
    c->at += 6;
    if (code < 0xd800 || code > 0xdfff)
        return true;
    long low = hex4(c, c->at);
    if (code > 0xdbff || low < 0xdc00 || low > 0xdfff)
        return fail(c, start, "half a character in a string");
    c->at += 6;
    return true;
}

static bool string(struct cursor *c) {
    const unsigned char *start = c->at++;
    while (peek(c) != '"') {
        if (c->at == c->end)
            return fail(c, start, "a string without an end");
        if (*c->at == '\\') {
            if (!escape(c))
                return false;
            continue;
        }
        size_t n = *c->at < 0x20 ? 0 : utf8(c->at, c->end);
        if (n == 0)
            return fail(c, c->at,
                        *c->at < 0x20 ? "a control character in a string" : "not UTF-8 text");
        c->at += n;
    }
    c->at++;
    return true;
}

static bool digits(struct cursor *c) {
    const unsigned char *start = c->at;
    while (c->at < c->end && *c->at >= '0' && *c->at <= '9')
        c->at++;
    return c->at > start;
}

static bool number(struct cursor *c) {
    const unsigned char *start = c->at;
    c->at += peek(c) == '-';
    bool zero = peek(c) == '0', good = digits(c);
    const unsigned char *whole = start + (*start == '-');
    good = good && !(zero && c->at - whole > 1);
    if (good && peek(c) == '.') {
        c->at++;
        good = digits(c);
    }
    if (good && (peek(c) == 'e' || peek(c) == 'E')) {
        c->at++;
        c->at += peek(c) == '+' || peek(c) == '-';
        good = digits(c);
    }
    if (!good)
        return fail(c, start, "not a number as JSON writes it");
    return c->at - start <= NUMBER_MAX || fail(c, start, "a number of more than 60 characters");
}

static bool word(struct cursor *c) {
    static const char *const words[] = {"true", "false", "null", "NaN", "Infinity", "-Infinity"};
    for (size_t i = 0; i < sizeof words / sizeof *words; i++) {
        size_t length = strlen(words[i]);
        if ((size_t)(c->end - c->at) < length || memcmp(c->at, words[i], length) != 0)
            continue;
        if (i >= 3)
            keep(&c->scan->constants, (size_t)(c->at - c->text));
        c->at += length;
        return true;
    }
    return peek(c) == '-' ? number(c) : fail(c, c->at, "a value is expected");
}

static bool value(struct cursor *c);

static bool member(struct cursor *c) {
    if (peek(c) != '"')
        return fail(c, c->at, "a name in double quotes is expected");
    keep(&c->scan->names, (size_t)(c->at - c->text));
    if (!string(c))
        return false;
    skip_space(c);
    if (peek(c) != ':')
        return fail(c, c->at, "':' is expected");
    c->at++;
    return value(c);
}

/* An object or an array, from its opening bracket. */
static bool items(struct cursor *c) {
    bool object = *c->at == '{';
    if (++c->depth > DEPTH_MAX)
        return fail(c, c->at, "brackets nested more than 200 deep");
    c->at++;
    skip_space(c);
    int close = object ? '}' : ']';
    while (peek(c) != close) {
        if (!(object ? member(c) : value(c)))
            return false;
        skip_space(c);
        if (peek(c) == close)
            break;
        if (peek(c) != ',')
            return fail(c, c->at, object ? "',' or '}' is expected" : "',' or ']' is expected");
        c->at++;
        skip_space(c);
        if (peek(c) == close)
            return fail(c, c->at, "a comma before the closing bracket");
    }
    c->at++;
    c->depth--;
    return true;
}

static bool value(struct cursor *c) {
    skip_space(c);
    int first = peek(c);
    if (first == '{' || first == '[')
        return items(c);
    if (first == '"')
        return string(c);
    return first >= '0' && first <= '9' ? number(c) : word(c);
}

void mm_json_scan(struct mm_json_scan *scan, const char *text, size_t bytes) {
    *scan = (struct mm_json_scan){0};
    const unsigned char *begin = (const unsigned char *)text;
    struct cursor c = {scan, begin, begin, begin + bytes, 0};
    const unsigned char *nul = memchr(begin, 0, bytes);
    if (nul) {
        fail(&c, nul, "a NUL character");
        return;
    }
    if (!value(&c)) {
        if (c.at == c.end && scan->fault == bytes)
            scan->why = "it ends too early";
        return;
    }
    skip_space(&c);
    if (c.at < c.end)
        fail(&c, c.at, "something stands behind the end");
}

void mm_json_scan_clear(struct mm_json_scan *scan) {
    mm_free(scan->names.at);
    mm_free(scan->constants.at);
    *scan = (struct mm_json_scan){0};
}
