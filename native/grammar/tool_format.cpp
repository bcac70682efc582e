#include "grammar/tool_format.h"

#include "grammar/template_limits.h"

#include "chat-auto-parser-helpers.h"
#include "chat-auto-parser.h"
#include "chat-peg-parser.h"
#include "chat.h"
#include "json-schema-to-grammar.h"
#include "json.h"
#include "peg-parser.h"

#include <algorithm>
#include <cctype>
#include <map>
#include <mutex>
#include <optional>
#include <set>
#include <stdexcept>
#include <utility>

namespace pyfastv {
namespace {

// the largest of the hub have a tenth of it
constexpr size_t most_source = 256*1024;

constexpr const char * generic_begin = "{\"tool_calls\":";

std::string with_plain_newlines(const std::string & text) {
    std::string res;
    res.reserve(text.size());
    for (size_t i = 0; i < text.size(); ++i) {
        if (text[i] != '\r') {
            res += text[i];
        } else if (i + 1 == text.size() || text[i + 1] != '\n') {
            res += '\n';
        }
    }
    return res;
}

// what f() gives; throws what it throws, or which limit it reached
template <typename F>
auto within_budget(template_budget::kind kind, const char * what, F && f) {
    const template_budget budget(kind);
    const auto refuse = [&] {
        throw std::runtime_error(std::string(what) + budget.spent());
    };
    try {
        auto res = f();
        if (budget.spent()) { // somebody has caught it
            refuse();
        }
        return res;
    } catch (const std::bad_alloc &) {
        throw;
    } catch (const std::exception &) {
        if (budget.spent()) {
            refuse();
        }
        throw;
    }
}

std::string escaped(const std::string & word) {
    std::string res;
    for (const char c : word) {
        if (std::string("\\^$.|?*+()[]{}").find(c) != std::string::npos) {
            res += '\\';
        }
        res += c;
    }
    return res;
}

std::vector<std::string> expressions_of(const std::vector<common_grammar_trigger> & triggers) {
    std::vector<std::string> res;
    for (const auto & trigger : triggers) {
        switch (trigger.type) {
            case COMMON_GRAMMAR_TRIGGER_TYPE_WORD:
                res.push_back(escaped(trigger.value));
                break;
            case COMMON_GRAMMAR_TRIGGER_TYPE_PATTERN:
                res.push_back(trigger.value);
                break;
            case COMMON_GRAMMAR_TRIGGER_TYPE_PATTERN_FULL:
                res.push_back("^" + trigger.value + "$");
                break;
            case COMMON_GRAMMAR_TRIGGER_TYPE_TOKEN: // there is none without a vocabulary
                break;
        }
    }
    return res;
}

// The rules at which a call begins, of a parser in JSON.
std::set<std::string> trigger_rules(const std::string & parser) {
    std::set<std::string> res;

    const auto saved = common_json::parse(parser);
    for (const auto & rule : saved.at("parsers")) {
        if (rule.value("type", std::string()) == "rule" && rule.at("trigger").get<bool>()) {
            res.insert(rule.at("name").get<std::string>());
        }
    }
    return res;
}

// Does a rule name another?
bool mentions(const std::string & rule, const std::string & name) {
    const auto is_name = [&](size_t at) { return at < rule.size() && (std::isalnum((unsigned char) rule[at]) || rule[at] == '-'); };

    for (size_t at = rule.find(name); at != std::string::npos; at = rule.find(name, at + 1)) {
        if ((at == 0 || !is_name(at - 1)) && !is_name(at + name.size())) {
            return true;
        }
    }
    return false;
}

// A grammar of whole answers as one of the calls in them alone; empty: there are none.
std::string of_calls(const std::string & grammar, const std::set<std::string> & triggers) {
    std::map<std::string, std::string> found; // of the triggers
    std::string                        others;

    for (size_t begin = 0; begin < grammar.size();) {
        const size_t end  = std::min(grammar.find('\n', begin), grammar.size());
        const auto   line = grammar.substr(begin, end - begin);
        const auto   name = line.substr(0, line.find(' '));

        if (name != "root") {
            others += line + "\n";
        }
        if (triggers.count(name)) {
            found[name] = line.substr(name.size());
        }
        begin = end + 1;
    }

    std::string root;
    for (const auto & [name, rule] : found) {
        // what is part of another one is not the beginning
        const bool is_inside = std::any_of(found.begin(), found.end(), [&, name = name](const auto & other) {
            return other.first != name && mentions(other.second, name);
        });
        if (!is_inside) {
            root += (root.empty() ? "" : " | ") + name;
        }
    }
    return root.empty() ? "" : "root ::= " + root + "\n" + others;
}

autoparser::generation_params params_of(const tool_request & request) {
    autoparser::generation_params res;

    // the form of calls does not depend on what was said
    res.messages              = common_json::array({ common_json{ { "role", "user" }, { "content", "Q" } } });
    res.tools                 = common_json::parse(request.tools);
    res.tool_choice           = COMMON_CHAT_TOOL_CHOICE_AUTO;
    res.parallel_tool_calls   = request.parallel;
    res.reasoning_format      = COMMON_REASONING_FORMAT_DEEPSEEK;
    res.add_generation_prompt = true;
    res.enable_thinking       = request.thinks;
    res.extra_context         = common_json::parse(request.variables);

    return res;
}

bool contains(const std::vector<std::string> & texts, const std::string & text) {
    return std::find(texts.begin(), texts.end(), text) != texts.end();
}

} // namespace

struct tool_format::parser {
    common_peg_arena          arena;
    common_chat_parser_params params;
};

tool_format::tool_format(std::unique_ptr<const parser> inner) : inner(std::move(inner)) {}

tool_format::~tool_format() = default;

tool_answer tool_format::parse(const std::string & text) const {
    return within_budget(template_budget::kind::parsing, "the answer cannot be parsed: ", [&] {
        const auto message = common_chat_peg_parse(inner->arena, text, /* is_partial */ true, inner->params);

        tool_answer res = { message.content, message.reasoning_content, {} };
        for (const auto & call : message.tool_calls) {
            res.calls.push_back({ call.id, call.name, call.arguments });
        }
        return res;
    });
}

struct tool_template::analysis {
    std::unique_ptr<common_chat_template> source;

    // made when it is asked for: many templates are known by a word in them
    mutable std::once_flag                        once;
    mutable std::optional<autoparser::autoparser> found;

    const autoparser::autoparser & automatic() const {
        std::call_once(once, [&] {
            autoparser::autoparser res;
            res.analyze_template(*source);
            found = std::move(res);
        });
        return *found;
    }
};

tool_template::tool_template(std::string source, const std::string & bos, const std::string & eos) : inner(new analysis) {
    if (source.size() > most_source) {
        throw std::runtime_error("the chat template has " + std::to_string(source.size()) + " bytes; at most " +
                std::to_string(most_source) + " are read for the form of tools' calls");
    }
    inner->source = within_budget(template_budget::kind::rendering, "the chat template cannot be analyzed: ", [&] {
        return std::make_unique<common_chat_template>(with_plain_newlines(source), bos, eos);
    });
}

tool_template::~tool_template() = default;

bool tool_template::is_parallel() const {
    return inner->source->caps.supports_parallel_tool_calls;
}

std::unique_ptr<tool_format> tool_template::format(const tool_request & request) const {
    return within_budget(template_budget::kind::rendering, "the chat template cannot be analyzed: ", [&]() -> std::unique_ptr<tool_format> {
        const auto & source = *inner->source;

        auto params = params_of(request);

        bool        is_known = true;
        std::string thought;

        const auto made = [&] {
            if (auto special = common_chat_try_specialized_template(source, source.source(), params)) {
                thought = special->thinking_start_tag;
                return *special;
            }
            const auto & automatic = inner->automatic();

            is_known = automatic.jinja_caps.supports_tool_calls && automatic.tools.format.mode != autoparser::tool_format::NONE;
            thought  = trim_whitespace(automatic.reasoning.start);
            if (contains(request.thought_tags, thought)) {
                params.reasoning_format = COMMON_REASONING_FORMAT_NONE;
            }
            return is_known ? autoparser::peg_generator::generate_parser(source, params, automatic) : common_chat_params();
        };

        auto found = made();
        if (!is_known) {
            return nullptr;
        }
        const bool is_taken_out = contains(request.thought_tags, thought);
        if (is_taken_out && params.reasoning_format != COMMON_REASONING_FORMAT_NONE) {
            params.reasoning_format = COMMON_REASONING_FORMAT_NONE;
            found = made();
        }

        auto inside = std::make_unique<tool_format::parser>();
        inside->params = common_chat_parser_params(found);
        inside->params.reasoning_format = params.reasoning_format;
        if (is_taken_out) { // a parser of answers reads what the prompt ends with before them
            auto & ahead = inside->params.generation_prompt;
            ahead = ahead.substr(0, ahead.find(thought));
        }
        inside->arena.load(found.parser);

        std::unique_ptr<tool_format> res(new tool_format(std::move(inside)));
        res->preserved = found.preserved_tokens;
        res->stops     = found.additional_stops;
        if (request.required) {
            params.tool_choice = COMMON_CHAT_TOOL_CHOICE_REQUIRED;
            const auto strict = made();
            res->grammar = of_calls(strict.grammar, trigger_rules(strict.parser));
            if (res->grammar.empty()) {
                return nullptr;
            }
        } else if (found.grammar_lazy) {
            res->triggers = expressions_of(found.grammar_triggers);
            res->grammar  = res->triggers.empty() ? "" : found.grammar;
        }
        return res;
    });
}

std::unique_ptr<tool_format> generic_tool_format(const tool_request & request) {
    return within_budget(template_budget::kind::rendering, "the tools cannot be read: ", [&] {
        const auto tools = common_json::parse(request.tools);

        const auto arena = build_chat_peg_parser([&](common_chat_peg_builder & p) {
            auto calls = p.standard_json_tools(generic_begin, "}", tools, request.parallel, /* force_tool_calls */ false, "name", "arguments",
                    /* array_wrapped */ true);
            return p.optional(p.content(p.until(generic_begin))) + calls + p.space() + p.end();
        });

        auto inside = std::make_unique<tool_format::parser>();
        inside->arena         = arena;
        inside->params.format = COMMON_CHAT_FORMAT_PEG_NATIVE;

        std::unique_ptr<tool_format> res(new tool_format(std::move(inside)));
        res->grammar = build_grammar([&](const common_grammar_builder & builder) { arena.build_grammar(builder, /* lazy */ true); });
        if (!request.required) {
            res->triggers = { escaped(generic_begin) };
        }
        return res;
    });
}

} // namespace pyfastv
