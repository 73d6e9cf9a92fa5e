# Takes the place of llama.cpp's own CMakeLists.txt. It compiles llama-server alone and links it with the libraries that pip
# compiled for llama-cpp-python (LIBRARIES and COMMON: folders), so that both compute with the same machine code.
cmake_minimum_required(VERSION 3.21)
project(llama.cpp C CXX)
set(CMAKE_CXX_STANDARD 17)
find_package(Threads REQUIRED)
find_package(OpenSSL) # the libraries use it if it is there

function(use name folder)
    add_library(${name} SHARED IMPORTED GLOBAL)
    set_target_properties(${name} PROPERTIES IMPORTED_LOCATION ${folder}/lib${name}.so)
endfunction()
use(ggml-base ${LIBRARIES})
use(ggml-cpu ${LIBRARIES})
use(ggml ${LIBRARIES})
use(llama ${LIBRARIES})
use(mtmd ${LIBRARIES})
use(llama-common ${COMMON})
target_include_directories(llama INTERFACE include ggml/include)
target_include_directories(mtmd INTERFACE tools/mtmd)
target_include_directories(llama-common INTERFACE common vendor)
target_compile_definitions(llama-common INTERFACE LLAMA_SUBPROCESS)
target_link_libraries(llama INTERFACE ggml ggml-cpu ggml-base)
target_link_libraries(mtmd INTERFACE llama)
target_link_libraries(llama-common INTERFACE llama Threads::Threads)
add_library(cpp-httplib INTERFACE) # its code is part of llama-common
if(OpenSSL_FOUND)
    target_compile_definitions(cpp-httplib INTERFACE CPPHTTPLIB_OPENSSL_SUPPORT)
    target_link_libraries(cpp-httplib INTERFACE OpenSSL::SSL OpenSSL::Crypto)
endif()

# RPATH, not RUNPATH: the libraries must find each other through it too.
add_link_options(-Wl,--disable-new-dtags)
set(CMAKE_BUILD_RPATH ${LIBRARIES} ${COMMON})
add_subdirectory(tools/ui)
# All of the server's files at once: most of the time goes into headers that they share.
set(CMAKE_UNITY_BUILD ON)
set(CMAKE_UNITY_BUILD_BATCH_SIZE 0)
add_subdirectory(tools/server)
