/* yaml.c - see yaml.h.
 *
 * libyaml's events become a tree of nodes (every place in the text kept), and a tree becomes
 * settings by joining the keys on the way down with dots. An argument's value is read as the only
 * item of a flow list, so that files and arguments go through the same code. */
#include "src/config/yaml.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <yaml.h>

/* A key is copied into every setting below it. */
enum { MAX_DEPTH = 8, MAX_NODES = 10000, MAX_KEY = 1024 };

struct mm_yaml_source {
    char *argument;
    struct mm_yaml_node root;
};

struct builder {
    yaml_parser_t parser;
    struct mm_yaml_origin origin;
    const char *text;
    size_t text_n;
    size_t nodes_n;
    struct mm_error *err;
};

/* ---- messages ---- */

const char *mm_yaml_shown(char out[MM_YAML_SHOWN], const char *text) {
    size_t n = strnlen(text, MM_YAML_SHOWN), end = n;
    bool cut = n == MM_YAML_SHOWN;
    if (cut) {
        end = MM_YAML_SHOWN - 4;
        while (end && ((unsigned char)text[end] & 0xc0) == 0x80) /* not inside a character */
            end--;
    }
    for (size_t i = 0; i < end; i++)
        out[i] = (unsigned char)text[i] < 0x20 || text[i] == 0x7f ? '?' : text[i];
    strcpy(out + end, cut ? "..." : "");
    return out;
}

enum mm_status mm_yaml_fail(struct mm_error *err, struct mm_yaml_origin origin, size_t line,
                            const char *format, ...) {
    char what[768], shown[MM_YAML_SHOWN];
    va_list args;
    va_start(args, format);
    vsnprintf(what, sizeof what, format, args);
    va_end(args);
    if (origin.argument)
        return mm_fail(err, MM_BAD_INPUT, "argument '%s': %s",
                       mm_yaml_shown(shown, origin.argument), what);
    if (line)
        return mm_fail(err, MM_BAD_INPUT, "%s:%zu: %s", origin.file, line, what);
    return mm_fail(err, MM_BAD_INPUT, "%s: %s", origin.file, what);
}

/* Line and column (from 1) of a byte; columns count characters. */
static void position(const char *text, size_t offset, size_t *line, size_t *column) {
    *line = *column = 1;
    for (size_t i = 0; i < offset; i++)
        if (text[i] == '\n') {
            ++*line;
            *column = 1;
        } else if (((unsigned char)text[i] & 0xc0) != 0x80)
            ++*column;
}

static bool indented_by_tab(const char *text, size_t text_n, size_t line) {
    const char *at = text, *end = text + text_n;
    while (--line && at) {
        at = memchr(at, '\n', (size_t)(end - at));
        at = at ? at + 1 : NULL;
    }
    while (at && at < end && *at == ' ')
        at++;
    return at && at < end && *at == '\t';
}

static enum mm_status syntax_error(struct builder *b) {
    const yaml_parser_t *p = &b->parser;
    MM_CHECK(p->error != YAML_MEMORY_ERROR, "out of memory in libyaml");
    const char *problem = p->problem ? p->problem : "not valid YAML";
    const char *context = p->error != YAML_READER_ERROR && p->context ? p->context : "";
    if (b->origin.argument)
        return mm_yaml_fail(b->err, b->origin, 0, "not a YAML value: %s", problem);
    /* The reader, which decodes UTF-8, knows no marks. */
    size_t line = p->problem_mark.line + 1, column = p->problem_mark.column + 1;
    if (p->error == YAML_READER_ERROR)
        position(b->text, p->problem_offset < b->text_n ? p->problem_offset : b->text_n, &line,
                 &column);
    const char *hint =
        indented_by_tab(b->text, b->text_n, line) ? "; indent with spaces, not tabs" : "";
    return mm_fail(b->err, MM_BAD_INPUT, "%s:%zu:%zu: %s%s%s%s%s", b->origin.file, line, column,
                   problem, *context ? " (" : "", context, *context ? ")" : "", hint);
}

/* ---- events to a tree ---- */

static void free_node(struct mm_yaml_node *node) {
    for (size_t i = 0; i < node->items_n; i++)
        free_node(&node->items[i]);
    mm_free(node->items);
    mm_free(node->text);
    mm_free(node->key);
    memset(node, 0, sizeof *node);
}

static enum mm_status next_event(struct builder *b, yaml_event_t *event) {
    return yaml_parser_parse(&b->parser, event) ? MM_OK : syntax_error(b);
}

static enum mm_status check_plain_yaml(struct builder *b, const yaml_event_t *event) {
    const yaml_char_t *anchor = NULL, *tag = NULL;
    if (event->type == YAML_SCALAR_EVENT) {
        anchor = event->data.scalar.anchor;
        tag = event->data.scalar.tag;
    } else if (event->type == YAML_SEQUENCE_START_EVENT) {
        anchor = event->data.sequence_start.anchor;
        tag = event->data.sequence_start.tag;
    } else if (event->type == YAML_MAPPING_START_EVENT) {
        anchor = event->data.mapping_start.anchor;
        tag = event->data.mapping_start.tag;
    }
    size_t line = event->start_mark.line + 1;
    if (anchor || event->type == YAML_ALIAS_EVENT)
        return mm_yaml_fail(b->err, b->origin, line,
                            "anchors (&) and aliases (*) are not supported: write the value out");
    if (tag)
        return mm_yaml_fail(b->err, b->origin, line, "tags (!) are not supported");
    if (++b->nodes_n > MAX_NODES)
        return mm_yaml_fail(b->err, b->origin, line, "more than %d values", MAX_NODES);
    return MM_OK;
}

static enum mm_status copy_scalar(struct builder *b, const yaml_event_t *event, char **text) {
    const char *value = (const char *)event->data.scalar.value;
    if (strlen(value) != event->data.scalar.length)
        return mm_yaml_fail(b->err, b->origin, event->start_mark.line + 1,
                            "a text contains a NUL character");
    *text = mm_strdup(value);
    return MM_OK;
}

static enum mm_status build_key(struct builder *b, const yaml_event_t *event,
                                struct mm_yaml_node *item) {
    enum mm_status status = check_plain_yaml(b, event);
    if (status)
        return status;
    item->key_line = event->start_mark.line + 1;
    if (event->type != YAML_SCALAR_EVENT)
        return mm_yaml_fail(b->err, b->origin, item->key_line, "a key must be a name");
    if (event->data.scalar.length > MAX_KEY)
        return mm_yaml_fail(b->err, b->origin, item->key_line, "a key of more than %d bytes",
                            MAX_KEY);
    return copy_scalar(b, event, &item->key);
}

static enum mm_status build_items(struct builder *b, struct mm_yaml_node *node, int depth);

static enum mm_status build_node(struct builder *b, const yaml_event_t *event,
                                 struct mm_yaml_node *node, int depth) {
    enum mm_status status = check_plain_yaml(b, event);
    if (status)
        return status;
    node->line = event->start_mark.line + 1;
    if (event->type == YAML_SCALAR_EVENT) {
        node->quoted = event->data.scalar.style != YAML_PLAIN_SCALAR_STYLE;
        return copy_scalar(b, event, &node->text);
    }
    if (depth == MAX_DEPTH)
        return mm_yaml_fail(b->err, b->origin, node->line, "nested too deeply");
    node->kind = event->type == YAML_MAPPING_START_EVENT ? MM_YAML_MAP : MM_YAML_LIST;
    return build_items(b, node, depth + 1);
}

static enum mm_status build_items(struct builder *b, struct mm_yaml_node *node, int depth) {
    for (;;) {
        yaml_event_t event;
        enum mm_status status = next_event(b, &event);
        if (status)
            return status;
        if (event.type == YAML_SEQUENCE_END_EVENT || event.type == YAML_MAPPING_END_EVENT) {
            yaml_event_delete(&event);
            return MM_OK;
        }
        node->items = mm_realloc(node->items, (node->items_n + 1) * sizeof *node->items);
        struct mm_yaml_node *item = &node->items[node->items_n++];
        *item = (struct mm_yaml_node){0};
        if (node->kind == MM_YAML_MAP) {
            status = build_key(b, &event, item);
            yaml_event_delete(&event);
            if (!status)
                status = next_event(b, &event);
            if (status)
                return status;
        }
        status = build_node(b, &event, item, depth);
        yaml_event_delete(&event);
        if (status)
            return status;
    }
}

/* The one document of the stream. */
static enum mm_status build_document(struct builder *b, struct mm_yaml_node *root) {
    static const yaml_event_type_t frame[] = {YAML_STREAM_START_EVENT, YAML_DOCUMENT_START_EVENT,
                                              YAML_NO_EVENT, YAML_DOCUMENT_END_EVENT,
                                              YAML_STREAM_END_EVENT};
    for (size_t i = 0; i < sizeof frame / sizeof *frame; i++) {
        yaml_event_t event;
        enum mm_status status = next_event(b, &event);
        if (status)
            return status;
        if (frame[i] == YAML_NO_EVENT)
            status = build_node(b, &event, root, 0);
        else if (event.type == YAML_STREAM_END_EVENT && frame[i] == YAML_DOCUMENT_START_EVENT)
            status = mm_yaml_fail(b->err, b->origin, 0, "nothing in it: it holds no key");
        else if (event.type != frame[i])
            status = mm_yaml_fail(b->err, b->origin, event.start_mark.line + 1,
                                  "a second document: only one is read");
        yaml_event_delete(&event);
        if (status)
            return status;
    }
    return MM_OK;
}

static enum mm_status build_tree(struct mm_yaml_node *root, const char *text, size_t n,
                                 struct mm_yaml_origin origin, struct mm_error *err) {
    if (n >= 3 && memcmp(text, "\xef\xbb\xbf", 3) == 0) { /* libyaml counts the mark as a column */
        text += 3;
        n -= 3;
    }
    struct builder b = {.origin = origin, .text = text, .text_n = n, .err = err};
    MM_CHECK(yaml_parser_initialize(&b.parser), "out of memory in libyaml");
    /* Otherwise another byte-order mark announces UTF-16. */
    yaml_parser_set_encoding(&b.parser, YAML_UTF8_ENCODING);
    yaml_parser_set_input_string(&b.parser, (const unsigned char *)text, n);
    enum mm_status status = build_document(&b, root);
    yaml_parser_delete(&b.parser);
    return status;
}

/* ---- a tree to settings ---- */

static struct mm_setting *find(const struct mm_settings *settings, const char *key) {
    for (size_t i = 0; i < settings->n; i++)
        if (strcmp(settings->items[i].key, key) == 0)
            return &settings->items[i];
    return NULL;
}

const struct mm_setting *mm_settings_find(const struct mm_settings *settings, const char *key) {
    return find(settings, key);
}

void mm_settings_drop(struct mm_settings *settings, const char *key) {
    struct mm_setting *found = find(settings, key);
    if (!found)
        return;
    mm_free(found->key);
    *found = settings->items[--settings->n];
}

/* Takes `key` over, also on an error. */
static enum mm_status add(struct mm_settings *settings, struct mm_setting new,
                          struct mm_error *err) {
    const struct mm_setting *old = find(settings, new.key);
    if (old && !old->origin.argument == !new.origin.argument) {
        char key[MM_YAML_SHOWN], first[MM_YAML_SHOWN];
        mm_yaml_shown(key, new.key);
        mm_free(new.key);
        if (old->origin.argument)
            return mm_yaml_fail(err, new.origin, 0, "repeated key '%s' (first in argument '%s')",
                                key, mm_yaml_shown(first, old->origin.argument));
        return mm_yaml_fail(err, new.origin, new.line, "repeated key '%s' (first on line %zu)", key,
                            old->line);
    }
    mm_settings_drop(settings, new.key);
    settings->items = mm_realloc(settings->items, (settings->n + 1) * sizeof *settings->items);
    settings->items[settings->n++] = new;
    return MM_OK;
}

static enum mm_status flatten(struct mm_settings *settings, const struct mm_yaml_node *node,
                              const char *key, size_t line, struct mm_yaml_origin origin,
                              struct mm_error *err) {
    if (node->kind != MM_YAML_MAP || (node->items_n == 0 && *key))
        return add(settings,
                   (struct mm_setting){
                       .key = mm_strdup(key), .value = node, .line = line, .origin = origin},
                   err);
    enum mm_status status = MM_OK;
    for (size_t i = 0; i < node->items_n && !status; i++) {
        const struct mm_yaml_node *item = &node->items[i];
        char *dotted = mm_format("%s%s%s", key, *key ? "." : "", item->key);
        status = flatten(settings, item, dotted, item->key_line, origin, err);
        mm_free(dotted);
    }
    return status;
}

/* A place for a tree. Settings point to nodes below the root or copied from it, never to the root
 * itself, which moves when the array grows. */
static struct mm_yaml_source *add_source(struct mm_settings *settings) {
    settings->sources =
        mm_realloc(settings->sources, (settings->sources_n + 1) * sizeof *settings->sources);
    struct mm_yaml_source *source = &settings->sources[settings->sources_n++];
    *source = (struct mm_yaml_source){0};
    return source;
}

enum mm_status mm_settings_add_text(struct mm_settings *settings, const char *text, size_t n,
                                    const char *file, struct mm_error *err) {
    struct mm_yaml_origin origin = {.file = file};
    struct mm_yaml_node *root = &add_source(settings)->root;
    enum mm_status status = build_tree(root, text, n, origin, err);
    if (status)
        return status;
    if (root->kind != MM_YAML_MAP)
        return mm_yaml_fail(err, origin, root->line,
                            "the file must be a mapping of sections and keys, 'seed: 42'");
    return flatten(settings, root, "", 0, origin, err);
}

enum mm_status mm_settings_add_argument(struct mm_settings *settings, const char *argument,
                                        struct mm_error *err) {
    struct mm_yaml_source *source = add_source(settings);
    source->argument = mm_strdup(argument);
    struct mm_yaml_origin origin = {.argument = source->argument};
    const char *equals = strchr(argument, '=');
    if (!equals || equals == argument)
        return mm_yaml_fail(err, origin, 0, "expected key=value");
    if (equals - argument > MAX_KEY)
        return mm_yaml_fail(err, origin, 0, "a key of more than %d bytes", MAX_KEY);
    /* The line break ends a comment that would hide the bracket. */
    char *list = mm_format("[%s\n]", equals + 1);
    struct mm_yaml_node *root = &source->root;
    enum mm_status status = build_tree(root, list, strlen(list), origin, err);
    mm_free(list);
    if (status)
        return status;
    if (root->items_n == 0)
        return mm_yaml_fail(err, origin, 0, "no value (write null for none)");
    if (root->items_n > 1)
        return mm_yaml_fail(err, origin, 0,
                            "more than one value: write [a, b], or quotes around a text");
    char *key = mm_format("%.*s", (int)(equals - argument), argument);
    status = flatten(settings, &root->items[0], key, 0, origin, err);
    mm_free(key);
    return status;
}

void mm_settings_free(struct mm_settings *settings) {
    for (size_t i = 0; i < settings->n; i++)
        mm_free(settings->items[i].key);
    for (size_t i = 0; i < settings->sources_n; i++) {
        free_node(&settings->sources[i].root);
        mm_free(settings->sources[i].argument);
    }
    mm_free(settings->items);
    mm_free(settings->sources);
    *settings = (struct mm_settings){0};
}

/* ---- scalars ---- */

bool mm_yaml_is_null(const struct mm_yaml_node *node) {
    static const char *const nulls[] = {"", "~", "null", "Null", "NULL"};
    if (node->kind != MM_YAML_SCALAR || node->quoted)
        return false;
    for (size_t i = 0; i < sizeof nulls / sizeof *nulls; i++)
        if (strcmp(node->text, nulls[i]) == 0)
            return true;
    return false;
}

/* Decodes one character and returns the bytes it takes, 0 if it is not UTF-8. */
static size_t decode(const unsigned char *at, unsigned *code) {
    static const unsigned least[] = {0, 0, 0x80, 0x800, 0x10000};
    size_t n = *at < 0x80             ? 1
               : (*at & 0xe0) == 0xc0 ? 2
               : (*at & 0xf0) == 0xe0 ? 3
               : (*at & 0xf8) == 0xf0 ? 4
                                      : 0;
    *code = n == 1 ? *at : n ? *at & (0x7fu >> n) : 0;
    for (size_t i = 1; i < n; i++) {
        if ((at[i] & 0xc0) != 0x80) /* also stops at the terminating NUL */
            return 0;
        *code = *code << 6 | (at[i] & 0x3fu);
    }
    return *code >= least[n] && *code <= 0x10ffff && (*code < 0xd800 || *code > 0xdfff) ? n : 0;
}

bool mm_yaml_text_ok(const char *text) {
    const unsigned char *at = (const unsigned char *)text;
    while (*at) {
        unsigned code;
        size_t n = decode(at, &code);
        if (n == 0 || code < 0x20 || (code >= 0x7f && code < 0xa0) || code == 0x2028 ||
            code == 0x2029 || code == 0xfeff || code == 0xfffe || code == 0xffff)
            return false;
        at += n;
    }
    return true;
}
