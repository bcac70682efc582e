#include "llama/left_recursion.h"

#include <cstdint>
#include <vector>

namespace pyfastv {
namespace {

bool ends_alternative(const llama_grammar_element & element) {
    return element.type == LLAMA_GRETYPE_END || element.type == LLAMA_GRETYPE_ALT;
}

bool may_be_empty(const llama_grammar_rule & rule) {
    bool at_start = true;
    for (const auto & element : rule) {
        if (ends_alternative(element) && at_start) {
            return true;
        }
        at_start = ends_alternative(element);
    }
    return false;
}

} // namespace

bool is_left_recursive(const llama_grammar_rules & rules) {
    enum class state : uint8_t { unseen, on_the_way, done };

    struct visit {
        size_t rule;
        size_t element;
        bool   leftmost; // nothing before the element reads a character
    };

    std::vector<state> states(rules.size(), state::unseen);
    std::vector<visit> way;

    for (size_t first = 0; first < rules.size(); ++first) {
        if (states[first] == state::unseen) {
            states[first] = state::on_the_way;
            way.push_back({ first, 0, true });
        }
        while (!way.empty()) {
            auto & here = way.back();
            if (here.element == rules[here.rule].size()) {
                states[here.rule] = state::done;
                way.pop_back();
                continue;
            }
            const auto & element = rules[here.rule][here.element];
            if (element.type == LLAMA_GRETYPE_RULE_REF && here.leftmost) {
                const size_t next = element.value;
                if (states[next] == state::on_the_way) {
                    return true;
                }
                if (states[next] == state::unseen) {
                    states[next] = state::on_the_way;
                    way.push_back({ next, 0, true }); // and then this element again
                    continue;
                }
                here.leftmost = may_be_empty(rules[next]);
            } else {
                here.leftmost = ends_alternative(element);
            }
            here.element++;
        }
    }
    return false;
}

} // namespace pyfastv
