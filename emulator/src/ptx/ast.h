// What a PTX file says, resolved as far as the text alone allows: names became indices, scopes are gone.
//
// The parser (parser.h) makes it, the decoder (core/decode.h) turns each Statement into an executable instruction.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace vgpu::ptx {

enum class Space : uint8_t { kNone, kReg, kParam, kConst, kGlobal, kShared, kLocal };

// One row of the source file, from .loc. File 0 means that the module was compiled without line information.
struct SourceLine {
  uint32_t file = 0;  // index into Module::files
  uint32_t line = 0;
  uint32_t column = 0;
  // Where the function that holds `line` was inlined; outermost caller, 0 when it was not inlined.
  uint32_t caller_file = 0;
  uint32_t caller_line = 0;
  // Calls between the two, where functions were inlined into each other: index into Module::call_chains, 0 for none.
  uint32_t chain = 0;
};

struct CallPlace {
  uint32_t file = 0, line = 0;
  bool operator==(const CallPlace&) const = default;
};

// .b8 … .b128, .u8 … .f64, .pred, and the 16-bit and packed floats, written as in the text without the dot ("u32").
struct Type {
  std::string name;
  uint32_t bits = 0;  // 1 for pred
};

constexpr uint32_t kNoIndex = ~0u;

enum class OperandKind : uint8_t {
  kRegister,   // %r1; `index` into Function::registers. `negated` for !%p
  kSpecial,    // %tid.x: `name` has it whole
  kImmediate,  // 12, 0x1F, -3, 0f3F800000, 0d…, 1.5: `bits`, see below. WARP_SZ too
  kSymbol,     // a variable or function used as a value: `name`, `index` into the table that `table` says, + `offset`
  kLabel,      // branch target: `index` of the statement it stands before; statements.size() at the end of the body
  kVector,     // {a, b, c, d}: `elements`
  kAddress,    // [base + offset] or [base, {x, y}, mbar…]: elements[0] is the base, the rest what follows the comma.
               // The offset is that of the kAddress; that of a kSymbol base is 0, and that of a kImmediate is folded in
  kPair,       // d|p: two `elements`
  kSink,       // _
};

// What the `index` of a kSymbol counts in. `space` is kNone for the last three.
enum class SymbolTable : uint8_t {
  kNone,
  kParameters,       // Function::parameters; space kParam
  kResults,          // Function::results; space kParam
  kVariables,        // Function::variables; space kShared, kLocal, or kParam
  kModuleVariables,  // Module::variables
  kFunctions,        // Module::functions
  kBranchTables,     // Function::branch_tables
  kPrototype,        // .callprototype or .calltargets, of which nothing is kept: index is kNoIndex
};

struct Operand {
  OperandKind kind = OperandKind::kSink;
  bool negated = false;
  // Immediates: an integer in two's complement of 64 bits; a float written 0f… as its 32 bits (float_bits = 32), 0d… or
  // with a decimal point as its 64 bits (float_bits = 64).
  uint8_t float_bits = 0;
  Space space = Space::kNone;  // of a kSymbol
  SymbolTable table = SymbolTable::kNone;
  uint32_t index = kNoIndex;
  uint64_t bits = 0;
  int64_t offset = 0;  // of a kSymbol or a kAddress
  std::string name;    // as written, for messages
  std::vector<Operand> elements;
};

// A call has three operands, whatever it leaves out in the text: a kVector of results, the callee (kSymbol or
// kRegister), a kVector of arguments; and a fourth, the prototype, where it names one.
struct Statement {
  std::string opcode;  // "ld", "mma", "bra": up to the first dot
  // The rest, split at dots and with "::" kept: {"global", "L1::no_allocate", "v4", "f32"}.
  std::vector<std::string> modifiers;
  std::vector<Operand> operands;
  uint32_t guard = kNoIndex;  // register of @p
  bool guard_negated = false;
  SourceLine where;
  uint32_t ptx_line = 0;
  std::string text;  // the whole instruction on one line, for messages
};

struct Register {
  std::string name;  // as written; not unique, for scopes may repeat it
  Type type;
};

// A variable with storage. Offsets are given out by whoever lays out its space.
struct Variable {
  std::string name;  // unique in its table: the second param0 of a function is "param0.1"
  Space space = Space::kNone;
  Type type;           // of one element
  uint32_t align = 1;  // bytes
  uint64_t bytes = 0;  // 0 for `extern .shared x[]`
  bool is_extern = false;
  std::vector<std::byte> initial;  // empty: zeros (global, const) or undefined (shared, local); else `bytes` long
  struct Address {                 // initial[at .. at + 8) is the address of another variable plus offset
    uint64_t at = 0;
    std::string name;
    int64_t offset = 0;
    bool generic = false;
  };
  std::vector<Address> addresses;
};

struct Parameter {
  std::string name;
  Type type;  // "b8" with bytes > 1 for a struct passed by value
  uint32_t align = 1;
  uint32_t bytes = 0;
  uint32_t offset = 0;  // in the parameter buffer, natural alignment
};

struct Function {
  std::string name;
  bool is_entry = false;
  bool is_declaration = false;  // `.extern .func`, or a prototype with no body in this text. Else one entry has both
  bool no_return = false;
  std::vector<Parameter> parameters;
  std::vector<Parameter> results;   // of a .func
  std::vector<Register> registers;  // of all scopes; of a range %r<17>, those that the body uses
  std::vector<Variable> variables;  // declared in the body: .shared, .local, and .param (for calls)
  std::vector<Statement> statements;
  std::vector<std::vector<uint32_t>> branch_tables;  // .branchtargets: statement indices
  // Directives; 0 where absent.
  uint32_t max_threads[3] = {0, 0, 0};       // .maxntid
  uint32_t required_threads[3] = {0, 0, 0};  // .reqntid
  uint32_t required_cluster[3] = {0, 0, 0};  // .reqnctapercluster
  bool explicit_cluster = false;
  bool blocks_are_clusters = false;
  uint32_t max_cluster_rank = 0;
  uint32_t min_blocks = 0;     // .minnctapersm
  uint32_t max_registers = 0;  // .maxnreg
};

struct Module {
  std::string version;                                  // "9.0"
  std::string target;                                   // "sm_90a"
  std::vector<std::string> files;                       // [0] is empty; paths from .file
  std::vector<std::vector<CallPlace>> call_chains{{}};  // innermost call first; [0] is empty
  std::vector<Variable> variables;                      // module scope: .global, .const, .shared (static and extern)
  std::vector<Function> functions;
};

}  // namespace vgpu::ptx
