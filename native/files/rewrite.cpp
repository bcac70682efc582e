#include "files/rewrite.h"

#include "runner/cores.h"
#include "runner/errors.h"
#include "runner/log.h"
#include "runner/model_file.h"

#include "ggml-cpp.h"
#include "gguf.h"

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <memory>
#include <system_error>
#include <thread>
#include <vector>

namespace pyfastv {
namespace {

constexpr size_t chunk_bytes = 4 << 20;

constexpr float largest = 65504; // of f16, which also the scales of quantized blocks are

struct file_closer {
    void operator()(FILE * file) const { fclose(file); }
};
using file_ptr = std::unique_ptr<FILE, file_closer>;

[[noreturn]] void refuse_write() {
    throw std::system_error(errno ? errno : EIO, std::generic_category());
}

struct input {
    std::string      path;
    ggml_context_ptr tensors; // without data
    gguf_context_ptr header;
    file_ptr         file;

    explicit input(const std::string & path) : path(path) {
        check_header_file(path);

        const log_scope log(false);

        ggml_context * found = nullptr;
        header.reset(gguf_init_from_file(path.c_str(), { /* no_alloc */ true, &found }));
        tensors.reset(found);
        if (!header) {
            throw log.failure(error_kind::model, path, "cannot be read");
        }
        file.reset(fopen(path.c_str(), "rb"));
        if (!file) {
            throw error(error_kind::model, path + ": cannot be opened for reading");
        }
    }

    [[noreturn]] void refuse(const std::string & reason) const { throw error(error_kind::model, path + ": " + reason); }

    void seek(int64_t id) const {
        const size_t at = gguf_get_data_offset(header.get()) + gguf_get_tensor_offset(header.get(), id);
        if (fseeko(file.get(), (off_t) at, SEEK_SET) != 0) {
            refuse("cannot be read: " + std::string(strerror(errno)));
        }
    }

    void read(void * to, size_t n, const ggml_tensor & tensor) const {
        if (fread(to, 1, n, file.get()) != n) {
            refuse("is truncated: " + std::string(tensor.name) + " is not there");
        }
    }
};

class output {
public:
    explicit output(const std::string & path) : file(fopen(path.c_str(), "wb")) {
        if (!file) {
            refuse_write();
        }
    }

    void write_header(const gguf_context * header) {
        errno = 0;
        if (!gguf_write_to_file_ptr(header, file.get(), /* only_meta */ true)) {
            refuse_write();
        }
    }

    void write(const void * bytes, size_t n) {
        errno = 0;
        if (fwrite(bytes, 1, n, file.get()) != n) {
            refuse_write();
        }
    }

    void close() {
        errno = 0;
        if (fclose(file.release()) != 0) {
            refuse_write();
        }
    }

private:
    file_ptr file;
};

// f(thread, first, last) on parts of [0, n), which must not throw
template <typename F> void in_parallel(int n_threads, int64_t n, F && f) {
    std::vector<std::thread> threads;
    threads.reserve(n_threads);
    for (int i = 1; i < n_threads; ++i) {
        try {
            threads.emplace_back(f, i, n*i/n_threads, n*(i + 1)/n_threads);
        } catch (const std::system_error &) {
            f(i, n*i/n_threads, n*(i + 1)/n_threads); // no thread to be had
        }
    }
    f(0, 0, n/n_threads);
    for (auto & thread : threads) {
        thread.join();
    }
}

void to_floats(ggml_type type, const void * from, float * to, int64_t n) {
    if (type == GGML_TYPE_F32) {
        memcpy(to, from, n*sizeof(float));
    } else {
        ggml_get_type_traits(type)->to_float(from, to, n);
    }
}

class rewriting {
public:
    rewriting(const input & in, output & out, const rewrite_plan & plan, int n_threads, const rewrite_progress & progress)
        : in(in), out(out), plan(plan), n_threads(n_threads), progress(progress) {
        for (int64_t id = 0; id < n_tensors(); ++id) {
            total += gguf_get_tensor_size(in.header.get(), id);
        }
    }

    void run() {
        const gguf_context_ptr header(gguf_init_empty());
        gguf_set_kv(header.get(), in.header.get());
        gguf_remove_key(header.get(), "general.alignment"); // a context keeps the default, whatever the key says
        for (const auto & [key, value] : plan.keys) {
            gguf_set_val_u32(header.get(), key.c_str(), value);
        }
        const ggml_context_ptr shapes(ggml_init({ (plan.tensors.size() + 1)*ggml_tensor_overhead(), nullptr, /* no_alloc */ true }));
        for (int64_t id = 0; id < n_tensors(); ++id) {
            const auto & tensor = at(id);
            const auto * made   = planned(tensor);
            gguf_add_tensor(header.get(), made ? new_shape(shapes.get(), tensor, *made) : &tensor);
        }
        out.write_header(header.get());

        for (int64_t id = 0; id < n_tensors(); ++id) {
            const auto & tensor = at(id);
            const auto * made   = planned(tensor);
            in.seek(id);
            const size_t size = made ? convert(tensor, *made) : copy(tensor, gguf_get_tensor_size(in.header.get(), id));
            const char   zeros[GGUF_DEFAULT_ALIGNMENT] = {};
            out.write(zeros, GGML_PAD(size, GGUF_DEFAULT_ALIGNMENT) - size);
        }
    }

private:
    const input &            in;
    output &                 out;
    const rewrite_plan &     plan;
    const int                n_threads;
    const rewrite_progress & progress;
    uint64_t                 done = 0, total = 0;

    int64_t n_tensors() const { return gguf_get_n_tensors(in.header.get()); }

    const ggml_tensor & at(int64_t id) const {
        return *ggml_get_tensor(in.tensors.get(), gguf_get_tensor_name(in.header.get(), id));
    }

    const new_tensor * planned(const ggml_tensor & tensor) const {
        const auto found = plan.tensors.find(tensor.name);
        return found == plan.tensors.end() ? nullptr : &found->second;
    }

    ggml_tensor * new_shape(ggml_context * ctx, const ggml_tensor & tensor, const new_tensor & made) const {
        const bool is_float = tensor.type == GGML_TYPE_F32 || tensor.type == GGML_TYPE_F16 || tensor.type == GGML_TYPE_BF16;
        if (!is_float || tensor.ne[2]*tensor.ne[3] != 1) {
            in.refuse(std::string(tensor.name) + " is no matrix of floating point numbers");
        }
        if (made.n_columns < tensor.ne[0] || made.n_rows < tensor.ne[1] || made.n_columns % ggml_blck_size(made.type) != 0) {
            in.refuse(std::string(tensor.name) + " cannot be " + std::to_string(made.n_columns) + " x " + std::to_string(made.n_rows) + " of " + ggml_type_name(made.type));
        }
        auto * res = ggml_new_tensor_2d(ctx, made.type, made.n_columns, made.n_rows);
        ggml_set_name(res, tensor.name);
        return res;
    }

    void advance(uint64_t n) {
        done += n;
        if (progress && !progress(done, total)) {
            throw interrupted();
        }
    }

    size_t copy(const ggml_tensor & tensor, size_t size) {
        std::vector<char> buffer(std::min(size, chunk_bytes));
        for (size_t left = size; left > 0; ) {
            const size_t n = std::min(left, buffer.size());
            in.read(buffer.data(), n, tensor);
            out.write(buffer.data(), n);
            left -= n;
            advance(n);
        }
        return size;
    }

    size_t convert(const ggml_tensor & tensor, const new_tensor & made) {
        const size_t  row_in  = ggml_row_size(tensor.type, tensor.ne[0]);
        const size_t  row_out = ggml_row_size(made.type, made.n_columns);
        const int64_t n_most  = std::clamp<int64_t>(chunk_bytes/row_in, 1, made.n_rows);

        std::vector<char>  from(n_most*row_in), to(n_most*row_out);
        std::vector<float> rows(n_threads*made.n_columns); // one of each thread

        for (int64_t first = 0; first < made.n_rows; first += n_most) {
            const int64_t n       = std::min(n_most, made.n_rows - first);
            const int64_t n_there = std::clamp<int64_t>(tensor.ne[1] - first, 0, n);
            in.read(from.data(), n_there*row_in, tensor);

            std::atomic<bool> finite(true), fits(true);
            in_parallel(n_threads, n, [&](int thread, int64_t begin, int64_t end) {
                float * row = rows.data() + thread*made.n_columns;
                for (int64_t i = begin; i < end; ++i) {
                    std::fill_n(row, made.n_columns, 0.0f);
                    if (i < n_there) {
                        to_floats(tensor.type, from.data() + i*row_in, row, tensor.ne[0]);
                    }
                    for (int64_t k = 0; k < tensor.ne[0]; ++k) {
                        if (!(std::fabs(row[k]) <= largest)) {
                            (std::isfinite(row[k]) ? fits : finite) = false;
                        }
                    }
                    if (!finite || (!fits && made.type != GGML_TYPE_F32)) {
                        return;
                    }
                    ggml_quantize_chunk(made.type, row, to.data() + i*row_out, 0, 1, made.n_columns, nullptr);
                }
            });
            if (!finite) {
                in.refuse(std::string(tensor.name) + " has values that are not finite: the file is damaged");
            }
            if (!fits && made.type != GGML_TYPE_F32) {
                in.refuse(std::string(tensor.name) + " has values above 65504, the largest of f16, which " + ggml_type_name(made.type) + " cannot hold");
            }
            out.write(to.data(), n*row_out);
            advance(n_there*row_in);
        }
        return made.n_rows*row_out;
    }
};

} // namespace

void rewrite_gguf(const std::string & source, const std::string & target, const rewrite_plan & plan, int n_threads, const rewrite_progress & progress) {
    const input in(source);
    output      out(target);
    rewriting(in, out, plan, n_threads > 0 ? n_threads : usable_cores(), progress).run();
    out.close();
}

} // namespace pyfastv
