// What llama.cpp's chat library calls of its common library beside what is built of it. It needs no vocabulary, and its log is
// nobody's: what goes wrong is an exception.

#include "common.h"
#include "log.h"

#include <stdexcept>
#include <string>
#include <vector>

void string_replace_all(std::string & text, const std::string & search, const std::string & replace) {
    for (size_t at = 0; !search.empty() && (at = text.find(search, at)) != std::string::npos; at += replace.size()) {
        text.replace(at, search.size(), replace);
    }
}

std::vector<llama_token> common_tokenize(const llama_vocab *, const std::string &, bool, bool) {
    throw std::logic_error("there is no vocabulary here");
}

std::string common_token_to_piece(const llama_vocab *, llama_token, bool) {
    throw std::logic_error("there is no vocabulary here");
}

int common_log_get_verbosity_thold() {
    return -1;
}

common_log * common_log_main() {
    return nullptr;
}

void common_log_add(common_log *, ggml_log_level, const char *, ...) {}
