/* json_scan.h - the strict check behind mm_json_object. All local.
 *
 * cJSON takes control characters, numbers with leading zeros, bytes that are no UTF-8 and a name
 * twice; Python, which reads the same files in transformers, does not, or takes the last of two
 * names where cJSON takes the first. What is in doubt is refused here, with its place. */
#ifndef MM_JSON_SCAN_H
#define MM_JSON_SCAN_H

#include "src/base/base.h"

struct mm_json_places { /* of tokens, as offsets into the text, in its order; owned */
    size_t *at, n;
};

struct mm_json_scan {
    struct mm_json_places names; /* the opening quote of every member's name */
    struct mm_json_places
        constants;   /* NaN, Infinity, -Infinity: not JSON, but Python writes them */
    size_t fault;    /* where `why` applies */
    const char *why; /* NULL: nothing is wrong */
};

/* Checks that the `bytes` of `text` are one JSON value with white space around it, nested at most
 * 200 deep. The caller frees with mm_json_scan_clear, also after a fault. */
void mm_json_scan(struct mm_json_scan *scan, const char *text, size_t bytes);
void mm_json_scan_clear(struct mm_json_scan *scan);

#endif
