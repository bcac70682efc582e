// engine: loading and freeing

#include "runner/engine.h"

#include "runner/load.h"

#ifdef __GLIBC__
#include <malloc.h>
#endif

namespace pyfastv {

engine::engine(const engine_options & options_in) : options(options_in), media_marker(random_marker()), encoded(options_in.encoder_cache_bytes) {
    check_options(options);
    options.n_threads = threads_of(options);

    stop  = [this] { return stop_requested(); };
    model = load_model(options);
    vocab = llama_model_get_vocab(model.get());
    ctx   = make_context(model.get(), options, { (uint32_t) options.n_ctx, 1 }, stop);
    if (options.mmproj_path) {
        vision = load_vision(model.get(), options, media_marker, stop);
    }
}

engine::~engine() {
    vision.reset();
    ctx.reset();
    model.reset();

#ifdef __GLIBC__
    // glibc keeps freed buffers of up to 32 MB each; a closed runner has none
    malloc_trim(0);
#endif
}

} // namespace pyfastv
