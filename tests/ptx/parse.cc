/* parse.cc - reads the PTX that nvcc writes: see ptx.h.
 *
 * A file is a list of statements that end with ';', labels, and scopes in braces. Shared arrays of
 * a file lie one after the other, the dynamic one last; a kernel's shared addresses begin at 0. */
#include "tests/ptx/ptx.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

#include <fstream>
#include <sstream>

namespace ptx {

/* -- statements -------------------------------------------------------------------------------- */

enum statement_kind { STATEMENT, OPEN, CLOSE, MARK };

struct statement {
    statement_kind kind;
    std::string text;
    unsigned line;
};

static std::string trimmed(const std::string &text) {
    size_t first = text.find_first_not_of(" \t\n"), last = text.find_last_not_of(" \t\n");
    return first == std::string::npos ? "" : text.substr(first, last - first + 1);
}

static bool starts(const std::string &text, const char *with) {
    return text.compare(0, strlen(with), with) == 0;
}

/* Directives that end with their line. */
static bool is_line_directive(const std::string &text) {
    return starts(text, ".version") || starts(text, ".target") || starts(text, ".address_size");
}

/* A brace opens or closes a scope unless it belongs to a list of operands. */
static std::vector<statement> split(std::istream &in) {
    std::vector<statement> list;
    std::string line, open;
    for (unsigned number = 1; std::getline(in, line); number++) {
        line = line.substr(0, line.find("//"));
        for (char c : line + "\n") {
            std::string text = trimmed(open);
            bool header = text.find(".entry") != std::string::npos;
            if (c == '{' && (text.empty() || header))
                list.push_back({OPEN, text, number});
            else if (c == '}' && text.empty())
                list.push_back({CLOSE, "", number});
            else if (c == ';')
                list.push_back({STATEMENT, text, number});
            else if (c == ':' && text.find(' ') == std::string::npos)
                list.push_back({MARK, text, number});
            else if (c != '\n' || !is_line_directive(text)) {
                open += c == '\n' ? ' ' : c;
                continue;
            }
            open.clear();
        }
    }
    return list;
}

/* -- declarations ------------------------------------------------------------------------------ */

struct bank { /* the registers that one .reg declares */
    uint32_t first, count;
    operand_kind kind;
};

static uint32_t width(operand_kind kind) {
    return kind == PREDICATE ? 4 : kind == WORD ? 4 * LANES : 8 * LANES;
}

class reader {
  public:
    reader(const std::string &path, kernel &into) : path(path), k(&into) {}
    void read(const std::string &name);

  private:
    const std::string path;
    kernel *const k;
    std::vector<std::map<std::string, bank>> scopes;
    std::map<std::string, size_t> shared, local, parameters;
    std::map<std::string, uint32_t> labels;
    std::vector<std::pair<uint32_t, std::string>> branches;
    std::map<std::pair<char, uint64_t>, uint32_t> constant_places;
    std::string
        dynamic; /* the array of dynamic shared memory, which begins where the static ends */
    std::vector<size_t> dynamic_places; /* the constants that are its address */
    unsigned line = 0;

    [[noreturn]] void refuse(const std::string &what) {
        fatal("%s:%u: %s", path.c_str(), line, what.c_str());
    }
    uint32_t take(operand_kind kind);
    void begin_kernel(const std::string &header);
    void end_kernel();
    void declare(const std::string &text);
    void declare_registers(const std::string &text);
    void declare_array(const std::string &text);
    void decode(std::string text);
    std::string form_of(const std::string &name, const std::vector<std::string> &list, int brace);
    void decode_guard(std::string &text, instruction &i);
    void operand(instruction &i, unsigned n, operand_kind kind, const std::string &text,
                 unsigned &address);
    uint32_t place(operand_kind kind, const std::string &text);
    uint32_t constant_place(operand_kind kind, uint64_t value);
    bool find_register(const std::string &name, operand_kind &kind, uint32_t &at);
    bool symbol(const std::string &name, uint64_t &value);
    void decode_address(instruction &i, unsigned n, std::string text, unsigned address);
};

uint32_t reader::take(operand_kind kind) {
    uint32_t at = k->file_bytes;
    if (kind != PREDICATE)
        at = (at + 63) / 64 * 64;
    k->file_bytes = at + width(kind);
    return at;
}

static size_t type_bytes(const std::string &type) {
    return static_cast<size_t>(atoi(type.c_str() + strcspn(type.c_str(), "0123456789")) / 8);
}

/* .align A .b8 name[bytes], or .u64 name: the name, its alignment and bytes (0 of name[]). */
static std::string array_of(const std::string &text, size_t &align, size_t &bytes) {
    std::istringstream in(text);
    std::string word, name;
    size_t element = 0;
    align = 0;
    while (in >> word)
        if (word == ".align")
            in >> align;
        else if (word[0] == '.' && isdigit(word.back()))
            element = type_bytes(word);
        else if (word[0] != '.')
            name = word;
    size_t bracket = name.find('[');
    bytes = element * (bracket == std::string::npos ? 1 : strtoul(&name[bracket + 1], NULL, 10));
    align = align ? align : element;
    return name.substr(0, bracket);
}

static size_t rounded_up(size_t bytes, size_t align) {
    return (bytes + align - 1) / align * align;
}

void reader::begin_kernel(const std::string &header) {
    size_t entry = header.find(".entry"), open = header.find('('), close = header.find(')');
    if (entry == std::string::npos || open == std::string::npos || close == std::string::npos)
        refuse("neither a kernel nor a list: " + header);
    k->name = trimmed(header.substr(entry + 6, open - entry - 6));
    k->file = path;
    std::istringstream list(header.substr(open + 1, close - open - 1));
    for (std::string one; std::getline(list, one, ',');) {
        size_t align, bytes;
        std::string parameter = array_of(one, align, bytes);
        size_t offset = rounded_up(k->parameter_bytes, align);
        if (parameter.empty())
            continue;
        parameters[parameter] = offset;
        k->parameters.push_back({offset, bytes});
        k->parameter_bytes = offset + bytes;
    }
    size_t most = header.find(".maxntid");
    if (most != std::string::npos)
        k->most_threads = static_cast<unsigned>(atoi(header.c_str() + most + 8));
}

void reader::end_kernel() {
    for (const auto &branch : branches) {
        if (!labels.count(branch.second))
            refuse("no label " + branch.second);
        k->code[branch.first].target = labels[branch.second];
    }
    k->shared_bytes = rounded_up(k->shared_bytes, 16);
    for (size_t c : dynamic_places)
        k->constants[c].value = k->shared_bytes;
    k->file_bytes = static_cast<uint32_t>(rounded_up(k->file_bytes, 64));
    find_joins(*k);
}

void reader::declare_registers(const std::string &text) {
    std::istringstream in(text.substr(4));
    std::string type, name;
    in >> type;
    operand_kind kind = type == ".pred" ? PREDICATE : type_bytes(type) == 8 ? LONG : WORD;
    while (std::getline(in, name, ',')) {
        name = trimmed(name);
        size_t angle = name.find('<');
        bank b = {0, 0, kind};
        if (angle != std::string::npos)
            b.count = static_cast<uint32_t>(atoi(&name[angle + 1]));
        b.first = take(kind);
        for (uint32_t i = 1; i < b.count; i++)
            take(kind);
        scopes.back()[name.substr(0, angle)] = b;
    }
}

void reader::declare_array(const std::string &text) {
    size_t align, bytes;
    std::string name = array_of(text, align, bytes);
    bool is_local = text.find(".local") != std::string::npos;
    if (!is_local && bytes == 0) {
        dynamic = name;
        return;
    }
    size_t &used = is_local ? k->local_bytes : k->shared_bytes;
    auto &names = is_local ? local : shared;
    used = rounded_up(used, align);
    names[name] = used;
    used += bytes;
}

void reader::declare(const std::string &text) {
    if (starts(text, ".reg"))
        declare_registers(text);
    else if (text.find(".shared") != std::string::npos || text.find(".local") != std::string::npos)
        declare_array(text);
    else if (!starts(text, ".pragma"))
        refuse("unknown directive " + text);
}

/* -- operands ---------------------------------------------------------------------------------- */

static const char *const SPECIAL[] = {"%tid.x",   "%tid.y",    "%tid.z",    "%ntid.x",
                                      "%ctaid.x", "%ctaid.y",  "%ctaid.z",  "%nctaid.x",
                                      "%ntid.y",  "%nctaid.y", "%nctaid.z", "%laneid"};

bool reader::find_register(const std::string &name, operand_kind &kind, uint32_t &at) {
    size_t digits = name.find_last_not_of("0123456789") + 1;
    uint32_t number = static_cast<uint32_t>(atoi(name.c_str() + digits));
    for (size_t s = scopes.size(); s-- > 0;)
        for (const std::string &known : {name, name.substr(0, digits)}) {
            auto found = scopes[s].find(known);
            if (found == scopes[s].end())
                continue;
            const bank &b = found->second;
            uint32_t index = b.count ? number : 0;
            kind = b.kind;
            at = b.first + index * width(kind);
            return b.count == 0 || (number < b.count && digits < name.size());
        }
    for (const char *known : SPECIAL)
        if (name == known) {
            kind = WORD;
            if (!k->special.count(name))
                k->special[name] = take(WORD);
            at = k->special[name];
            return true;
        }
    return false;
}

/* Addresses of arrays and parameters, each from 0 in its own space. */
bool reader::symbol(const std::string &name, uint64_t &value) {
    for (const auto *names : {&shared, &local, &parameters}) {
        auto found = names->find(name);
        if (found != names->end()) {
            value = found->second;
            return true;
        }
    }
    return false;
}

uint32_t reader::constant_place(operand_kind kind, uint64_t value) {
    uint32_t &at = constant_places[{kind, value}];
    if (at == 0) {
        k->constants.push_back({take(kind), kind, value});
        at = k->constants.back().at;
    }
    return at;
}

uint32_t reader::place(operand_kind kind, const std::string &text) {
    operand_kind is;
    uint32_t at;
    uint64_t value;
    if (find_register(text, is, at)) {
        if (is != kind)
            refuse(text + " is of another width than its instruction");
        return at;
    }
    if (text == "_")
        return take(kind);
    if (text == dynamic) {
        dynamic_places.push_back(k->constants.size());
        k->constants.push_back({take(kind), kind, 0});
        return k->constants.back().at;
    }
    if (symbol(text, value))
        return constant_place(kind, value);
    char *end;
    bool bits = starts(text, "0f") || starts(text, "0d");
    value = bits ? strtoull(text.c_str() + 2, &end, 16)
                 : static_cast<uint64_t>(strtoll(text.c_str(), &end, 0));
    if (text.empty() || *end)
        refuse("unknown operand '" + text + "'");
    return constant_place(kind, value);
}

void reader::decode_address(instruction &i, unsigned n, std::string text, unsigned address) {
    if (text.size() < 2 || text[0] != '[' || text.back() != ']')
        refuse("no address: " + text);
    text = text.substr(1, text.size() - 2);
    size_t plus = text.find('+');
    std::string base = trimmed(text.substr(0, plus));
    if (plus != std::string::npos)
        i.offset[address] = strtoll(&text[plus + 1], NULL, 0);
    operand_kind kind = LONG;
    if (!find_register(base, kind, i.at[n]))
        i.at[n] = place(LONG, base);
    i.long_address[address] = kind == LONG;
}

void reader::operand(instruction &i, unsigned n, operand_kind kind, const std::string &text,
                     unsigned &address) {
    if (kind == ADDRESS)
        decode_address(i, n, text, address++);
    else if (kind == LABEL)
        branches.push_back({static_cast<uint32_t>(k->code.size()), text});
    else if (kind == NUMBER)
        i.number = static_cast<uint32_t>(strtoll(text.c_str(), NULL, 0));
    else
        i.at[n] = place(kind, text);
}

/* -- instructions ------------------------------------------------------------------------------ */

/* The operands, lists in braces and "d|p" taken apart; `brace`: which of them is a list. */
static std::vector<std::string> operands_of(const std::string &text, int &brace) {
    std::vector<std::string> list;
    std::string one;
    int which = 0, depth = 0;
    brace = -1;
    for (char c : text + ",") {
        if (c == '{' || c == '}') {
            depth += c == '{' ? 1 : -1;
            brace = brace < 0 ? which : brace;
        } else if (c == ',' || c == '|') {
            which += depth == 0;
            if (!trimmed(one).empty())
                list.push_back(trimmed(one));
            one.clear();
        } else
            one += c;
    }
    return list;
}

void reader::decode_guard(std::string &text, instruction &i) {
    if (text[0] != '@')
        return;
    size_t space = text.find(' ');
    i.guarded = true;
    i.unless = text[1] == '!';
    i.guard = place(PREDICATE, text.substr(i.unless ? 2 : 1, space - (i.unless ? 2 : 1)));
    text = trimmed(text.substr(space));
}

/* See find_operation. */
std::string reader::form_of(const std::string &name, const std::vector<std::string> &list,
                            int brace) {
    operand_kind kind = WORD;
    uint32_t at;
    if (starts(name, "mov.") && brace >= 0)
        return name + (brace == 0 ? " {d}" : " {a}");
    if (starts(name, "cp.async.c") && list.size() == 4)
        return name + " partial";
    if (starts(name, "ld.") && name.substr(name.size() - 2) != "64" &&
        find_register(list[0], kind, at) && kind == LONG)
        return name + " long";
    return name;
}

void reader::decode(std::string text) {
    instruction i = {};
    int brace;
    i.line = line;
    k->text.push_back(text);
    for (char &c : text)
        c = c == '\t' ? ' ' : c;
    decode_guard(text, i);
    size_t space = text.find(' ');
    std::string name = text.substr(0, space);
    auto list = operands_of(space == std::string::npos ? "" : text.substr(space), brace);
    const operation *op = find_operation(form_of(name, list, brace));
    if (!op)
        refuse("the interpreter doesn't know " + text);
    if (list.size() != op->operands.size())
        refuse("another number of operands than the interpreter knows: " + text);
    i.run = op->run;
    unsigned address = 0;
    for (unsigned n = 0; n < list.size(); n++)
        operand(i, n, static_cast<operand_kind>(op->operands[n]), list[n], address);
    if (op->bytes && op->bytes < k->granule)
        k->granule = op->bytes;
    k->code.push_back(i);
}

/* Shared arrays of the file are the kernel's too; other kernels are passed over. */
void reader::read(const std::string &name) {
    std::ifstream in(path);
    unsigned passed = 0; /* scopes of another kernel that are open */
    for (const statement &s : split(in)) {
        line = s.line;
        bool other = s.kind == OPEN && scopes.empty() &&
                     s.text.find(".entry " + name + "(") == std::string::npos;
        if (passed || other)
            passed += s.kind == OPEN ? 1 : s.kind == CLOSE ? -1u : 0;
        else if (s.kind == OPEN) {
            if (scopes.empty())
                begin_kernel(s.text);
            scopes.emplace_back();
        } else if (s.kind == CLOSE) {
            scopes.pop_back();
            if (scopes.empty())
                end_kernel();
        } else if (s.kind == MARK)
            labels[s.text] = static_cast<uint32_t>(k->code.size());
        else if (s.text[0] == '.')
            declare(s.text);
        else
            decode(s.text);
    }
}

void read_kernel(const std::string &path, const std::string &name, kernel &k) {
    reader(path, k).read(name);
}

} // namespace ptx
