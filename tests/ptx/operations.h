/* operations.h - the table of operations, and who fills it. */
#ifndef MM_TEST_PTX_OPERATIONS_H
#define MM_TEST_PTX_OPERATIONS_H

#include "tests/ptx/machine.h"

#include <unordered_map>

namespace ptx {

typedef std::unordered_map<std::string, operation> operations;

void define_lanes(operations &table);       /* lanes.cc */
void define_memory(operations &table);      /* memory.cc */
void define_collectives(operations &table); /* collectives.cc: of a warp or a block, and the flow */

} // namespace ptx

#endif
