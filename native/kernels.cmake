# Our part of ggml's CPU backend: a file of products for every kind of CPU, chosen when it runs.

set(PYFASTV_KERNELS attention buffer choice gelu products)
if (CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64|amd64" AND CMAKE_CXX_COMPILER_ID MATCHES "GNU|Clang" AND NOT CMAKE_OSX_ARCHITECTURES MATCHES "arm64")
    list(APPEND PYFASTV_KERNELS avx2 avxvnni avx512)
    # whatever ggml itself is compiled for
    set(no_avx512 -mno-avx512f -mno-avx512vnni)
    set(flags_avx2    -march=x86-64-v3 ${no_avx512} -mno-avxvnni)
    set(flags_avxvnni -march=x86-64-v3 ${no_avx512} -mavxvnni)
    set(flags_avx512  -march=x86-64-v4 -mavx512vnni)
endif()

get_property(targets DIRECTORY ${PYFASTV_LLAMA_DIR}/ggml/src PROPERTY BUILDSYSTEM_TARGETS)
list(FILTER targets INCLUDE REGEX "^ggml-cpu")
list(FILTER targets EXCLUDE REGEX "-feats$")

foreach (target IN LISTS targets)
    target_include_directories(${target} PRIVATE ${CMAKE_CURRENT_LIST_DIR})
    foreach (name IN LISTS PYFASTV_KERNELS)
        set(source ${CMAKE_CURRENT_LIST_DIR}/kernels/${name}.cpp)
        target_sources(${target} PRIVATE ${source})
        if (flags_${name})
            set_source_files_properties(${source} TARGET_DIRECTORY ${target} PROPERTIES COMPILE_OPTIONS "-O3;${flags_${name}}")
        endif()
    endforeach()
    if (flags_avx2)
        target_compile_definitions(${target} PRIVATE PYFASTV_X86_KERNELS)
    endif()
endforeach()
