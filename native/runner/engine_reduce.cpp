// engine: fewer visual tokens between the vision encoder and the language model

#include "runner/engine.h"

#include "runner/errors.h"
#include "runner/stopwatch.h"

namespace pyfastv {

void engine::set_reducer(const std::string & spec) {
    reduce_how = parse_reducer_for(model.get(), spec);
}

void engine::clear_reducer() {
    reduce_how.reset();
}

picture_reduction engine::reduce_picture(prompt & prompt, size_t piece, const std::function<void(size_t)> & tell) {
    picture_reduction res(prompt, piece);

    while (res.n_added() < res.n_slices()) {
        res.add(encode(prompt.pieces[res.next()]));

        if (stop_requested()) {
            throw interrupted();
        }
        tell(res.n_tokens()*res.n_added()/res.n_slices());
    }

    const stopwatch watch;
    if (!backend) {
        backend = make_cpu_backend((int32_t) options.n_threads);
    }
    res.run(prompt, model.get(), backend.get());
    counts.reduce_ms += watch.ms();

    return res;
}

std::vector<int32_t> engine::places() const {
    std::vector<int32_t> res;
    for (const auto & piece : evaluated) {
        if (piece.visual()) {
            const auto places = places_of(piece);
            res.insert(res.end(), places.begin(), places.end());
        }
    }
    return res;
}

std::vector<encoded_slice> engine::embed(const image & picture) {
    const auto prompt = tokenized(media_marker, { picture }, false);

    std::vector<encoded_slice> res;
    for (const auto & piece : prompt.pieces) {
        if (piece.visual()) {
            res.push_back(encode(piece));
        }
    }
    return res;
}

} // namespace pyfastv
