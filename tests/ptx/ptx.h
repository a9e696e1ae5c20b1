/* ptx.h - PTX as the interpreter holds it: kernels of decoded instructions (NVIDIA, "PTX ISA").
 *
 * A warp's registers lie in one file, register after register; a register has its 32 lanes one
 * beside the other, in words of 4 bytes (8 for 64-bit types), or is one word of 32 bits if it is a
 * predicate. Constants and special registers such as %tid.x lie there too, so that every operand of
 * an instruction is a place in the file. */
#ifndef MM_TEST_PTX_H
#define MM_TEST_PTX_H

#include <stddef.h>
#include <stdint.h>

#include <map>
#include <string>
#include <vector>

namespace ptx {

constexpr unsigned LANES = 32;
constexpr uint32_t ALL_LANES = 0xffffffffu;

struct warp;
struct instruction;
typedef void (*handler)(warp &, const instruction &);

/* What an operand may be; of an operation, a string of these, a letter an operand. */
enum operand_kind : char {
    PREDICATE = 'p',
    WORD = 'w',    /* a register of 16 or 32 bits */
    LONG = 'l',    /* of 64 bits */
    ADDRESS = 'a', /* [register or name + offset] */
    NUMBER = 'n',
    LABEL = 'b',
};

struct operation {
    handler run;
    std::string operands;
    unsigned bytes; /* of an access to global or shared memory by one lane; 0: none */
};

/* The operation of that name, as written in PTX with all its modifiers; NULL: not known here. Forms
 * that PTX tells apart by their operands have a name of their own: "mov.b64 {d}" and "mov.b64 {a}",
 * where that operand is a list; "cp.async... partial", with the bytes that are read; "ld... long",
 * into a register of 64 bits. */
const operation *find_operation(const std::string &name);

constexpr unsigned MOST_OPERANDS = 14; /* mma has them */

struct instruction {
    handler run;
    uint32_t at[MOST_OPERANDS]; /* places in the file, in the order of the text */
    uint32_t guard;             /* place of the predicate, where guarded */
    bool guarded, unless;       /* unless: where the predicate is false */
    bool long_address[2];
    int64_t offset[2]; /* of the addresses */
    uint32_t number;
    uint32_t target, join; /* of a branch: where to, and where its paths meet again at the latest */
    unsigned line;
};

struct constant {
    uint32_t at;
    operand_kind kind;
    uint64_t value;
};

struct parameter {
    size_t offset, bytes;
};

struct kernel {
    std::string name, file;
    std::vector<std::string> text; /* of the instructions, for messages */
    std::vector<instruction> code;
    std::vector<parameter> parameters;
    size_t parameter_bytes = 0;
    std::vector<constant> constants;
    std::map<std::string, uint32_t> special; /* places of %tid.x and the like */
    uint32_t file_bytes = 0;
    size_t shared_bytes = 0; /* static; dynamic shared memory follows */
    size_t local_bytes = 0;
    unsigned most_threads = 1024;
    unsigned granule =
        4; /* the smallest access to memory, at most 4 bytes: what marks are kept by */
};

/* Reads kernel `name` of a file; what it has that is not known here is fatal. */
void read_kernel(const std::string &path, const std::string &name, kernel &k);

/* Fills in where the paths of every branch meet again: its immediate post-dominator. */
void find_joins(kernel &k);

/* Prints a message and ends the program. */
[[noreturn]] void fatal(const char *format, ...) __attribute__((format(printf, 1, 2)));

} // namespace ptx

#endif
