#include "bindings/bindings.h"

#include "grammar/tool_format.h"
#include "runner/errors.h"

#include <pybind11/stl.h>

#include <exception>
#include <memory>
#include <new>
#include <string>
#include <utility>
#include <vector>

namespace py = pybind11;

using namespace py::literals;

using pyfastv::tool_format;
using pyfastv::tool_request;
using pyfastv::tool_template;

namespace {

// f() without the GIL; what it throws, as an error of this kind
template <typename F>
auto checked(pyfastv::error_kind kind, F && f) {
    const native_scope scope;
    try {
        return f();
    } catch (const pyfastv::error &) {
        throw;
    } catch (const std::bad_alloc &) {
        throw;
    } catch (const std::exception & err) {
        throw pyfastv::error(kind, err.what());
    }
}

tool_request request_of(std::string tools, bool required, bool parallel, bool thinks, std::string variables, std::vector<std::string> thought_tags) {
    return { std::move(tools), required, parallel, thinks, std::move(variables), std::move(thought_tags) };
}

// what was found by comparing bytes may begin or end within a character
py::list to_texts(const std::vector<std::string> & all) {
    py::list res;
    for (const auto & one : all) {
        res.append(to_text(one));
    }
    return res;
}

py::tuple parse(const tool_format & format, const std::string & text) {
    const auto answer = checked(pyfastv::error_kind::decode, [&] { return format.parse(text); });

    py::list calls;
    for (const auto & call : answer.calls) {
        calls.append(py::make_tuple(to_text(call.id), to_text(call.name), to_text(call.arguments)));
    }
    return py::make_tuple(to_text(answer.content), to_text(answer.thought), calls);
}

} // namespace

void bind_tools(py::module_ & m) {
    py::class_<tool_format>(m, "ToolFormat")
        .def_property_readonly("grammar",   [](const tool_format & self) { return to_text(self.grammar); })
        .def_property_readonly("triggers",  [](const tool_format & self) { return to_texts(self.triggers); })
        .def_property_readonly("preserved", [](const tool_format & self) { return to_texts(self.preserved); })
        .def_property_readonly("stops",     [](const tool_format & self) { return to_texts(self.stops); })
        .def("parse", &parse, "text"_a);

    py::class_<tool_template>(m, "ToolTemplate")
        .def(py::init([](std::string source, const std::string & bos, const std::string & eos) {
            return checked(pyfastv::error_kind::model, [&] { return std::make_unique<tool_template>(std::move(source), bos, eos); });
        }), "source"_a, "bos_token"_a = "", "eos_token"_a = "")
        .def_property_readonly("parallel", &tool_template::is_parallel)
        .def("format", [](const tool_template & self, std::string tools, bool required, bool parallel, bool thinks, std::string variables,
                std::vector<std::string> thought_tags) {
            const auto request = request_of(std::move(tools), required, parallel, thinks, std::move(variables), std::move(thought_tags));
            return checked(pyfastv::error_kind::model, [&] { return self.format(request); });
        }, "tools"_a, "required"_a, "parallel"_a, "thinks"_a, "variables"_a, "thought_tags"_a);

    m.def("generic_tool_format", [](std::string tools, bool required, bool parallel) {
        const auto request = request_of(std::move(tools), required, parallel, true, "{}", {});
        return checked(pyfastv::error_kind::option, [&] { return pyfastv::generic_tool_format(request); });
    }, "tools"_a, "required"_a, "parallel"_a);
}
