#include "runner/cores.h"

#include "settings/text.h"

#include <algorithm>
#include <fstream>
#include <limits>
#include <optional>
#include <set>
#include <sstream>
#include <thread>

#ifdef __linux__
#    include <sched.h>
#endif

namespace pyfastv {
namespace {

std::optional<std::string> first_line(const std::string & path) {
    std::ifstream file(path);
    std::string   line;
    return std::getline(file, line) ? std::optional<std::string>(line) : std::nullopt;
}

// a number alone on the first line of a file
std::optional<int64_t> number_in_file(const std::string & path) {
    const auto line = first_line(path);
    return line ? whole_in(trim(*line)) : std::nullopt;
}

// that the scheduler may run this thread on; nothing: it does not say
std::vector<int32_t> allowed_cpus() {
    std::vector<int32_t> res;
#ifdef __linux__
    for (size_t n = 1; n <= 64; n *= 2) { // sets of 1024 CPUs; the kernel refuses fewer than it may have
        std::vector<cpu_set_t> sets(n);
        const size_t           size = n*sizeof(cpu_set_t);
        if (sched_getaffinity(0, size, sets.data()) == 0) {
            for (size_t cpu = 0; cpu < 8*size; ++cpu) {
                if (CPU_ISSET_S(cpu, size, sets.data())) {
                    res.push_back((int32_t) cpu);
                }
            }
            break;
        }
    }
#endif
    if (res.empty()) {
        for (uint32_t cpu = 0; cpu < std::thread::hardware_concurrency(); ++cpu) {
            res.push_back((int32_t) cpu);
        }
    }
    return res;
}

// CPUs that share a core name each other in one list
size_t count_cores(const std::string & root, const std::vector<int32_t> & cpus) {
    std::set<std::string> cores;
    for (const auto cpu : cpus) {
        const auto name     = "cpu" + std::to_string(cpu);
        const auto topology = root + "/sys/devices/system/cpu/" + name + "/topology/";
        auto       siblings = first_line(topology + "core_cpus_list");
        if (!siblings) {
            siblings = first_line(topology + "thread_siblings_list"); // its older name
        }
        cores.insert(siblings.value_or(name));
    }
    return cores.size();
}

// "max 100000" or "150000 100000": microseconds of CPU time in a period of so many; nothing: no limit
std::optional<double> quota_v2(const std::string & folder) {
    std::istringstream words(first_line(folder + "/cpu.max").value_or(""));
    std::string        quota, period;
    words >> quota >> period;
    const auto n = whole_in(quota), of = whole_in(period);
    return n && of && *n > 0 && *of > 0 ? std::optional<double>((double) *n/(double) *of) : std::nullopt;
}

std::optional<double> quota_v1(const std::string & folder) {
    const auto n = number_in_file(folder + "/cpu.cfs_quota_us"), of = number_in_file(folder + "/cpu.cfs_period_us");
    return n && of && *n > 0 && *of > 0 ? std::optional<double>((double) *n/(double) *of) : std::nullopt;
}

// The lowest of a group and those above it. In a container a group's path may be one outside of it, and the group is the root.
template <typename F>
double lowest(const std::string & mount, std::string group, F && quota) {
    double res = std::numeric_limits<double>::infinity();
    while (true) {
        res = std::min(res, quota(mount + group).value_or(res));
        if (group.empty()) {
            return res;
        }
        const auto parent = group.rfind('/');
        group.erase(parent == std::string::npos ? 0 : parent);
    }
}

// CPUs that the quota pays for; infinity: there is none
double quota_of(const std::string & root) {
    std::ifstream groups(root + "/proc/self/cgroup"); // "4:cpu,cpuacct:/docker/ab12", "0::/docker/ab12"
    std::string   line;
    double        res = lowest(root + "/sys/fs/cgroup", "", quota_v2);
    while (std::getline(groups, line)) {
        const auto first  = line.find(':');
        const auto second = line.find(':', first == std::string::npos ? first : first + 1);
        if (second == std::string::npos) {
            continue;
        }
        const auto names = line.substr(first + 1, second - first - 1);
        const auto path  = line.substr(second + 1);
        const auto kinds = split(names, ',');
        if (names.empty()) {
            res = std::min(res, lowest(root + "/sys/fs/cgroup", path, quota_v2));
        } else if (std::find(kinds.begin(), kinds.end(), "cpu") != kinds.end()) {
            for (const auto & mount : { names, std::string("cpu") }) {
                res = std::min(res, lowest(root + "/sys/fs/cgroup/" + mount, path, quota_v1));
            }
        }
    }
    return res;
}

} // namespace

int32_t usable_cores() { return usable_cores("", allowed_cpus()); }

int32_t usable_cores(const std::string & root, const std::vector<int32_t> & cpus) {
    const double cores = std::min((double) count_cores(root, cpus), quota_of(root));
    return std::max(1, (int32_t) cores);
}

} // namespace pyfastv
