/* safetensors.c - see safetensors.h. The file may come from anyone: every number of the header is
 * checked against the file before it is used, and what the format forbids (gaps, overlaps, a name
 * twice) is an error, as it is to the format's own library. */
#include "io/safetensors.h"

#include <cJSON.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "io/json_text.h"

static const size_t header_limit = 100 * 1000 * 1000;
static const char lfs_pointer[] = "version https://git-lfs";

/* The dtypes of the format; of one that is not here the size is not known, hence not checked.
 * The first three stand in the order of enum mm_dtype. */
static const struct dtype {
    const char *name;
    size_t bytes;
    bool floating;
    enum mm_dtype dtype;
} dtypes[] = {
    {"F32", 4, true, MM_F32},      {"BF16", 2, true, MM_BF16},    {"F16", 2, true, MM_F16},
    {"BOOL", 1, false, MM_F32},    {"U8", 1, false, MM_F32},      {"I8", 1, false, MM_F32},
    {"F8_E4M3", 1, false, MM_F32}, {"F8_E5M2", 1, false, MM_F32}, {"I16", 2, false, MM_F32},
    {"U16", 2, false, MM_F32},     {"I32", 4, false, MM_F32},     {"U32", 4, false, MM_F32},
    {"I64", 8, false, MM_F32},     {"U64", 8, false, MM_F32},     {"F64", 8, false, MM_F32},
    {"C64", 8, false, MM_F32},
};

static const struct dtype *dtype_of(const char *name) {
    for (size_t i = 0; i < sizeof dtypes / sizeof *dtypes; i++)
        if (!strcmp(name, dtypes[i].name))
            return &dtypes[i];
    return NULL;
}

const char *mm_safetensors_dtype(enum mm_dtype dtype) {
    return dtypes[dtype].name;
}

/* --- writing a header --- */

static void append(struct mm_safetensors_header *header, const char *text) {
    size_t length = strlen(text);
    if (header->bytes + length + 1 > header->capacity) {
        header->capacity = 2 * (header->bytes + length + 1);
        header->text = mm_realloc(header->text, header->capacity);
    }
    memcpy(header->text + header->bytes, text, length + 1);
    header->bytes += length;
}

static void append_count(struct mm_safetensors_header *header, size_t count) {
    char digits[24];
    snprintf(digits, sizeof digits, "%zu", count);
    append(header, digits);
}

/* `text` as a JSON string, quoted and escaped. */
static void append_string(struct mm_safetensors_header *header, const char *text) {
    cJSON *item = cJSON_CreateStringReference(text);
    char *quoted = item ? cJSON_PrintUnformatted(item) : NULL;
    MM_CHECK(quoted, "out of memory");
    append(header, quoted);
    cJSON_free(quoted);
    cJSON_Delete(item);
}

void mm_safetensors_header_begin(struct mm_safetensors_header *header, const char *metadata) {
    *header = (struct mm_safetensors_header){0};
    append(header, "12345678{"); /* the length's place */
    if (metadata) {
        append(header, "\"__metadata__\":");
        append(header, metadata);
    }
}

void mm_safetensors_header_add(struct mm_safetensors_header *header, const char *name,
                               const char *dtype, const char *shape, size_t bytes) {
    if (header->text[header->bytes - 1] != '{')
        append(header, ",");
    append_string(header, name);
    append(header, ":{\"dtype\":");
    append_string(header, dtype);
    append(header, ",\"shape\":");
    append(header, shape);
    append(header, ",\"data_offsets\":[");
    append_count(header, header->data_bytes);
    append(header, ",");
    append_count(header, header->data_bytes += bytes);
    append(header, "]}");
}

void mm_safetensors_header_end(struct mm_safetensors_header *header) {
    append(header, "}");
    while (header->bytes % 8)
        append(header, " ");
    for (size_t i = 0; i < 8; i++)
        header->text[i] = (char)(unsigned char)((uint64_t)(header->bytes - 8) >> 8 * i);
}

/* --- reading one --- */

/* JSON numbers are doubles here: beyond 2^53 a neighbour could have been meant. */
static bool count_of(const cJSON *item, size_t *count) {
    if (!cJSON_IsNumber(item) || !(item->valuedouble >= 0 && item->valuedouble < 0x1p53))
        return false;
    *count = (size_t)item->valuedouble;
    return (double)*count == item->valuedouble;
}

/* The three members of a tensor's object. */
static bool members_of(const cJSON *object, const cJSON **dtype, const cJSON **shape,
                       const cJSON **offsets) {
    *dtype = *shape = *offsets = NULL;
    if (!cJSON_IsObject(object))
        return false;
    const cJSON *member;
    cJSON_ArrayForEach(member, object) {
        const cJSON **place = !strcmp(member->string, "dtype")          ? dtype
                              : !strcmp(member->string, "shape")        ? shape
                              : !strcmp(member->string, "data_offsets") ? offsets
                                                                        : NULL;
        if (place)
            *place = member;
    }
    return cJSON_IsString(*dtype) && cJSON_IsArray(*shape) && cJSON_IsArray(*offsets);
}

/* Dimensions, their product and text; false if one is no count or the product too large. */
static bool read_shape(struct mm_safetensors_entry *entry, const cJSON *shape) {
    struct mm_safetensors_header text = {0};
    entry->tensor.elements = 1;
    bool good = true;
    append(&text, "[");
    const cJSON *item;
    cJSON_ArrayForEach(item, shape) {
        size_t dim = 0;
        good = count_of(item, &dim) && mm_mul(entry->tensor.elements, dim, &entry->tensor.elements);
        if (!good)
            break;
        if (entry->dims_n)
            append(&text, ",");
        append_count(&text, dim);
        if (entry->dims_n < 4)
            entry->tensor.dims[entry->dims_n] = dim;
        entry->dims_n++;
    }
    append(&text, "]");
    entry->shape = text.text;
    return good;
}

static enum mm_status read_offsets(const struct mm_safetensors *file,
                                   struct mm_safetensors_entry *entry, const cJSON *offsets,
                                   struct mm_error *err) {
    size_t begin, end;
    if (cJSON_GetArraySize(offsets) != 2 || !count_of(offsets->child, &begin) ||
        !count_of(offsets->child->next, &end) || end < begin)
        return mm_fail(err, MM_BAD_INPUT,
                       "%s: the data_offsets of tensor '%.200s' are not two ascending counts: "
                       "damaged, download it again",
                       file->path, entry->name);
    if (end > file->bytes - file->data_begin)
        return mm_fail(err, MM_BAD_INPUT,
                       "%s: truncated: header says tensor '%.200s' ends at byte %zu, the file has "
                       "%zu bytes: download it again",
                       file->path, entry->name, file->data_begin + end, file->bytes);
    entry->begin = file->data_begin + begin;
    entry->bytes = end - begin;
    entry->tensor.data = file->map + entry->begin;
    return MM_OK;
}

static enum mm_status read_entry(const struct mm_safetensors *file,
                                 struct mm_safetensors_entry *entry, const cJSON *object,
                                 struct mm_error *err) {
    entry->tensor.name = entry->name = mm_strdup(object->string);
    const cJSON *dtype, *shape, *offsets;
    if (!members_of(object, &dtype, &shape, &offsets))
        return mm_fail(err, MM_BAD_INPUT,
                       "%s: tensor '%.200s' has not a dtype, a shape and data_offsets: "
                       "damaged, download it again",
                       file->path, entry->name);
    entry->dtype = mm_strdup(dtype->valuestring);
    if (!read_shape(entry, shape))
        return mm_fail(err, MM_BAD_INPUT,
                       "%s: the shape of tensor '%.200s' is not a list of counts with a product "
                       "below 2^64: damaged, download it again",
                       file->path, entry->name);
    enum mm_status status = read_offsets(file, entry, offsets, err);
    if (status)
        return status;
    const struct dtype *known = dtype_of(entry->dtype);
    size_t bytes;
    if (known && (!mm_mul(entry->tensor.elements, known->bytes, &bytes) || bytes != entry->bytes))
        return mm_fail(err, MM_BAD_INPUT,
                       "%s: tensor '%.200s' has %zu bytes of data, but shape %.200s of %s: "
                       "damaged, download it again",
                       file->path, entry->name, entry->bytes, entry->shape, entry->dtype);
    entry->floating = known && known->floating;
    entry->listed = entry->floating && entry->dims_n <= 4;
    if (entry->floating)
        entry->tensor.dtype = known->dtype;
    if (entry->listed)
        entry->tensor.dims_n = entry->dims_n;
    return MM_OK;
}

/* An empty tensor comes before the one that starts at the same byte. */
static int by_place(const void *a, const void *b) {
    const struct mm_safetensors_entry *x = a, *y = b;
    if (x->begin != y->begin)
        return x->begin < y->begin ? -1 : 1;
    if (x->bytes != y->bytes)
        return x->bytes < y->bytes ? -1 : 1;
    return strcmp(x->name, y->name);
}

/* The data covered without gap or overlap. Leaves the entries in order of data. */
static enum mm_status check_layout(struct mm_safetensors *file, struct mm_error *err) {
    struct mm_safetensors_entry *entries = file->entries;
    qsort(entries, file->entries_n, sizeof *entries, by_place);
    size_t place = file->data_begin;
    for (size_t i = 0; i < file->entries_n; i++) {
        if (entries[i].begin < place)
            return mm_fail(err, MM_BAD_INPUT,
                           "%s: the data of tensors '%.200s' and '%.200s' overlap: damaged, "
                           "download it again",
                           file->path, entries[i - 1].name, entries[i].name);
        if (entries[i].begin > place)
            break;
        place += entries[i].bytes;
    }
    if (place != file->bytes)
        return mm_fail(err, MM_BAD_INPUT,
                       "%s: byte %zu of %zu belongs to no tensor: damaged, download it again",
                       file->path, place, file->bytes);
    return MM_OK;
}

static enum mm_status read_tensors(struct mm_safetensors *file, const cJSON *root,
                                   struct mm_error *err) {
    size_t members_n = 0;
    const cJSON *member;
    cJSON_ArrayForEach(member, root) members_n++;
    file->entries = mm_calloc(members_n, sizeof *file->entries);
    cJSON_ArrayForEach(member, root) {
        if (strcmp(member->string, "__metadata__")) {
            enum mm_status status =
                read_entry(file, &file->entries[file->entries_n++], member, err);
            if (status)
                return status;
            continue;
        }
        if (!cJSON_IsObject(member))
            return mm_fail(err, MM_BAD_INPUT,
                           "%s: \"__metadata__\" is not a JSON object: damaged, download it again",
                           file->path);
        char *text = cJSON_PrintUnformatted(member);
        MM_CHECK(text, "out of memory");
        file->metadata = mm_strdup(text);
        cJSON_free(text);
    }
    return check_layout(file, err);
}

enum mm_status mm_safetensors_parse(struct mm_safetensors *file, struct mm_error *err) {
    if (file->bytes < 8)
        return mm_fail(err, MM_BAD_INPUT,
                       "%s: truncated: %zu bytes, even an empty safetensors file has 10: download "
                       "it again",
                       file->path, file->bytes);
    if (file->bytes > sizeof lfs_pointer && !memcmp(file->map, lfs_pointer, sizeof lfs_pointer - 1))
        return mm_fail(err, MM_BAD_INPUT,
                       "%s: a Git LFS pointer, not the weights: run 'git lfs pull' there",
                       file->path);
    uint64_t length = 0;
    for (size_t i = 0; i < 8; i++)
        length |= (uint64_t)file->map[i] << 8 * i;
    if (length > header_limit)
        return mm_fail(err, MM_BAD_INPUT,
                       "%s: not a safetensors file, or damaged: its header would have %llu bytes "
                       "(the limit is %zu): download it again",
                       file->path, (unsigned long long)length, header_limit);
    if (length > file->bytes - 8)
        return mm_fail(err, MM_BAD_INPUT,
                       "%s: truncated: the header ends at byte %llu, the file has %zu bytes: "
                       "download it again",
                       file->path, (unsigned long long)length + 8, file->bytes);
    if (length == 0 || file->map[8] != '{')
        return mm_fail(err, MM_BAD_INPUT,
                       "%s: not a safetensors file, or damaged: its header does not begin with "
                       "'{': download it again",
                       file->path);
    file->data_begin = 8 + (size_t)length;
    char *text = mm_calloc((size_t)length + 1, 1);
    memcpy(text, file->map + 8, (size_t)length);
    cJSON *root = mm_json_object(text, (size_t)length, file->path, "the header", err);
    mm_free(text);
    enum mm_status status = root ? read_tensors(file, root, err) : MM_BAD_INPUT;
    cJSON_Delete(root);
    return status;
}

void mm_safetensors_clear(struct mm_safetensors *file) {
    for (size_t i = 0; i < file->entries_n; i++) {
        mm_free(file->entries[i].name);
        mm_free(file->entries[i].dtype);
        mm_free(file->entries[i].shape);
    }
    mm_free(file->entries);
    mm_free(file->metadata);
    file->entries = NULL;
    file->entries_n = 0;
    file->metadata = NULL;
}

static enum mm_status map_file(struct mm_safetensors *file, struct mm_error *err) {
    /* Not blocking: a pipe in place of a file must not hang the job. */
    int fd = open(file->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        return mm_fail(err, MM_BAD_INPUT, "%s: cannot read: %s", file->path, strerror(errno));
    enum mm_status status = MM_OK;
    struct stat info;
    if (fstat(fd, &info))
        status = mm_fail(err, MM_BAD_INPUT, "%s: cannot read: %s", file->path, strerror(errno));
    else if (!S_ISREG(info.st_mode))
        status = mm_fail(err, MM_BAD_INPUT, "%s: not a regular file", file->path);
    else if (info.st_size == 0)
        status = mm_fail(err, MM_BAD_INPUT, "%s: empty file: download it again", file->path);
    else {
        void *map = mmap(NULL, (size_t)info.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
        if (map == MAP_FAILED)
            status = mm_fail(err, MM_FAILED, "%s: cannot map: %s", file->path, strerror(errno));
        else {
            file->map = map;
            file->bytes = (size_t)info.st_size;
            file->inode = (uint64_t)info.st_ino;
            file->modified =
                (uint64_t)info.st_mtim.tv_sec * 1000000000u + (uint64_t)info.st_mtim.tv_nsec;
        }
    }
    close(fd);
    return status;
}

enum mm_status mm_safetensors_open(struct mm_safetensors *file, const char *folder,
                                   const char *name, struct mm_error *err) {
    *file =
        (struct mm_safetensors){.path = mm_format("%s/%s", folder, name), .name = mm_strdup(name)};
    enum mm_status status = map_file(file, err);
    if (!status)
        status = mm_safetensors_parse(file, err);
    if (status)
        mm_safetensors_close(file);
    return status;
}

void mm_safetensors_close(struct mm_safetensors *file) {
    mm_safetensors_clear(file);
    if (file->map)
        munmap((void *)(uintptr_t)file->map, file->bytes);
    mm_free(file->path);
    mm_free(file->name);
    *file = (struct mm_safetensors){0};
}

void mm_safetensors_forget(const void *data, size_t bytes) {
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), first = (uintptr_t)data / page * page;
    madvise((void *)first, (uintptr_t)data + bytes - first, MADV_DONTNEED);
}
