# Values and pure functions: compiled once, linked into the libraries and the module, seen by nobody else.

set(PYFASTV_SETTINGS_SOURCES
    settings/reducer.cpp
    settings/schedule.cpp
    settings/setting.cpp
    settings/skip.cpp
    settings/text.cpp
    settings/turbo.cpp
)
set(PYFASTV_CHOOSE_SOURCES
    choose/choose.cpp
    choose/cover.cpp
    choose/greedy.cpp
    choose/grid.cpp
    choose/predict.cpp
    choose/similarity.cpp
    products/parallel.cpp
    products/products.cpp
    choose/reducers/frames.cpp
    choose/reducers/merge.cpp
    choose/reducers/pool.cpp
    choose/reducers/reduce.cpp
    choose/reducers/select.cpp
)

foreach (room IN ITEMS settings choose)
    string(TOUPPER ${room} ROOM)
    list(TRANSFORM PYFASTV_${ROOM}_SOURCES PREPEND ${CMAKE_CURRENT_LIST_DIR}/)

    add_library(pyfastv_${room} OBJECT ${PYFASTV_${ROOM}_SOURCES})
    set_target_properties(pyfastv_${room} PROPERTIES CXX_VISIBILITY_PRESET hidden VISIBILITY_INLINES_HIDDEN ON)
    target_include_directories(pyfastv_${room} PRIVATE ${CMAKE_CURRENT_LIST_DIR} ${CMAKE_CURRENT_LIST_DIR}/include)
    if (CMAKE_CXX_COMPILER_ID MATCHES "GNU|Clang")
        target_compile_options(pyfastv_${room} PRIVATE -Wall -Wextra -Wpedantic -Wcast-qual -Wextra-semi)
    endif()
endforeach()
target_link_libraries(pyfastv_choose PRIVATE ggml)
