#pragma once

#include "runner/errors.h"

#include <string>

namespace pyfastv {

// llama.cpp, ggml and mtmd report why something failed through their log only. While a scope is alive, the error lines
// logged by this thread are kept; they are printed, like all other lines, if verbose. Outside of scopes nothing is printed,
// unless somebody else in the process has set a callback of their own: then it is called.
class log_scope {
public:
    explicit log_scope(bool verbose);
    ~log_scope();

    log_scope(const log_scope &) = delete;

    // the first error line, without the name of the function that logged it, and with the key that is to blame, if the line
    // tells; or `otherwise`
    std::string reason(const std::string & otherwise) const;

    // error(kind, what + ": " + reason(otherwise)); its kind is out_of_memory if an error line says so
    error failure(error_kind kind, const std::string & what, const std::string & otherwise = "no reason was given") const;

private:
    void add(const char * line) noexcept;

    log_scope * outer;
    bool        verbose;
    std::string errors;

    friend struct log_sink;
};

} // namespace pyfastv
