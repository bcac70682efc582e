#pragma once

#include <memory>
#include <string>
#include <vector>

// How a model writes calls of tools, by llama.cpp's chat library, which reads it off the model's chat template.

namespace pyfastv {

struct tool_call {
    std::string id; // empty: the model writes none
    std::string name;
    std::string arguments; // JSON, as far as it came
};

struct tool_answer {
    std::string            content;
    std::string            thought;
    std::vector<tool_call> calls;
};

struct tool_request {
    std::string tools;               // JSON: [{"type": "function", "function": {"name", "description", "parameters"}}]
    bool        required  = false;   // an answer is one call, or several
    bool        parallel  = false;   // several
    bool        thinks    = true;    // the template's enable_thinking
    std::string variables = "{}";    // JSON: what else the template is told

    // What begins a thought that somebody else takes out of the answer.
    std::vector<std::string> thought_tags;
};

// Of one request.
class tool_format {
public:
    ~tool_format();

    // GBNF of calls, and of nothing else; empty: there is nothing by which one could be told before it is over
    std::string grammar;

    // Regular expressions: what begins a call, and only that. In an answer, the grammar holds from there on. Empty where
    // calls are required: it holds from the first character on.
    std::vector<std::string> triggers;

    // tokens that are part of what the parser reads, whatever else they are
    std::vector<std::string> preserved;

    // texts that end an answer
    std::vector<std::string> stops;

    // An answer, or its beginning: then what is certain of it. Throws std::exception: it is not as this format has it.
    tool_answer parse(const std::string & text) const;

private:
    friend class tool_template;
    friend std::unique_ptr<tool_format> generic_tool_format(const tool_request & request);

    struct parser;

    explicit tool_format(std::unique_ptr<const parser> inner);

    std::unique_ptr<const parser> inner;
};

// A chat template. Any thread may ask it.
class tool_template {
public:
    // Throws std::exception: the library cannot read it, or it takes too long.
    tool_template(std::string source, const std::string & bos, const std::string & eos);
    ~tool_template();

    // Null: the template knows no tools, or none of the library's formats is its own. Throws std::exception.
    std::unique_ptr<tool_format> format(const tool_request & request) const;

    // Does it take several calls in one answer?
    bool is_parallel() const;

private:
    struct analysis;

    std::unique_ptr<analysis> inner;
};

// {"tool_calls": [{"name": ..., "arguments": ...}]}, for templates that know no tools: who asks tells the model so. The history
// of a conversation has calls in the same form (pyfastv/inputs/messages.py). Throws std::exception.
std::unique_ptr<tool_format> generic_tool_format(const tool_request & request);

} // namespace pyfastv
