// Serves requests side by side, each on a queue and a thread of its own, and says how fast.
#include <chrono>
#include <cstdio>
#include <exception>
#include <fstream>
#include <iostream>
#include <map>
#include <memory>
#include <random>
#include <sstream>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "decoder.hpp"

namespace {

using engine::Config;
using engine::Limits;
using engine::Model;
using engine::PagePool;
using engine::Queue;
using engine::Request;

constexpr char kUsage[] =
    "engine [--mode bounded|paged|both] [--weights FILE] [--prompts FILE] [--save FOLDER] [--NAME NUMBER ...]\n"
    "numbers, with their defaults:\n";

struct Options {
  std::map<std::string, std::string> texts{{"mode", "both"}, {"weights", ""}, {"prompts", ""}, {"save", ""}};
  std::map<std::string, int64_t> numbers{{"requests", 4},  {"prompt", 512}, {"produce", 64}, {"keep", 128},
                                         {"chunk", 256},   {"page", 64},    {"threads", 1},  {"seed", 0},
                                         {"layers", 4},    {"hidden", 512}, {"heads", 8},    {"kv-heads", 2},
                                         {"head-dim", 64}, {"ffn", 1024},   {"vocab", 1024}};
};

std::string usage() {
  std::string text = kUsage;
  for (const auto& [name, value] : Options().numbers) text += "  --" + name + " " + std::to_string(value) + "\n";
  return text;
}

Options parse(int count, char** arguments) {
  Options options;
  for (int i = 1; i < count; i += 2) {
    const std::string argument = arguments[i], name = argument.substr(argument.find_first_not_of('-') == 2 ? 2 : 0);
    if (argument == "--help") throw std::invalid_argument(usage());
    if (i + 1 == count) throw std::invalid_argument(argument + " has no value");
    const std::string value = arguments[i + 1];
    if (options.texts.count(name) != 0) {
      options.texts[name] = value;
    } else if (options.numbers.count(name) != 0) {
      size_t used = 0;
      try {
        options.numbers[name] = std::stoll(value, &used);
      } catch (const std::exception&) {
      }
      if (used != value.size() || options.numbers[name] < (name == "seed" ? 0 : 1)) {
        throw std::invalid_argument(argument + " is " + value + "; accepted: whole numbers from 1 on");
      }
    } else {
      throw std::invalid_argument("no option " + argument + "\n" + usage());
    }
  }
  const std::string& mode = options.texts["mode"];
  if (mode != "bounded" && mode != "paged" && mode != "both") {
    throw std::invalid_argument("--mode is " + mode + "; accepted: bounded, paged, both");
  }
  return options;
}

Model make_model(Queue& queue, const Options& options) {
  if (!options.texts.at("weights").empty()) return Model(queue, options.texts.at("weights"));
  const auto size = [&](const char* name) { return static_cast<int32_t>(options.numbers.at(name)); };
  Config config;
  config.layers = size("layers"), config.hidden = size("hidden"), config.heads = size("heads");
  config.kv_heads = size("kv-heads"), config.head_dim = size("head-dim"), config.ffn = size("ffn");
  config.vocab = size("vocab");
  return Model(queue, config, static_cast<unsigned>(options.numbers.at("seed")));
}

// One a line of the file, tokens apart by spaces; without a file, random ones.
std::vector<std::vector<int32_t>> make_prompts(const Options& options, int32_t vocab) {
  std::vector<std::vector<int32_t>> prompts;
  const std::string& path = options.texts.at("prompts");
  if (path.empty()) {
    std::mt19937 random(static_cast<unsigned>(options.numbers.at("seed")));
    prompts.resize(options.numbers.at("requests"));
    for (std::vector<int32_t>& prompt : prompts) {
      for (int64_t i = 0; i < options.numbers.at("prompt"); ++i)
        prompt.push_back(static_cast<int32_t>(random() % vocab));
    }
    return prompts;
  }
  std::ifstream file(path);
  if (!file) throw std::runtime_error("cannot read " + path);
  for (std::string line; std::getline(file, line);) {
    std::istringstream words(line);
    prompts.emplace_back();
    for (int32_t token = 0; words >> token;) prompts.back().push_back(token);
  }
  return prompts;
}

// Does `work` for all requests at once, a thread for each. Seconds.
template <class F>
double for_all(std::vector<std::unique_ptr<Request>>& requests, const F& work) {
  std::vector<std::exception_ptr> errors(requests.size());
  std::vector<std::thread> threads;
  const auto start = std::chrono::steady_clock::now();
  for (size_t i = 0; i < requests.size(); ++i) {
    threads.emplace_back([&, i] {
      try {
        work(*requests[i]);
      } catch (...) {
        errors[i] = std::current_exception();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const std::exception_ptr& error : errors) {
    if (error) std::rethrow_exception(error);
  }
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// FOLDER/MODE-REQUEST.tokens has a token a line, .logits the float32 (produce, vocab).
void save(Request& request, const std::string& stem) {
  std::ofstream tokens(stem + ".tokens");
  for (const int32_t token : request.tokens()) tokens << token << "\n";
  std::ofstream logits(stem + ".logits", std::ios::binary);
  logits.write(reinterpret_cast<const char*>(request.logits().data()),
               static_cast<std::streamsize>(request.logits().size() * sizeof(float)));
  if (!tokens.flush() || !logits.flush()) throw std::runtime_error("cannot write " + stem + ".tokens and .logits");
}

void serve(const Model& model, const std::vector<std::vector<int32_t>>& prompts, const Options& options,
           const std::string& mode) {
  const auto& numbers = options.numbers;
  const std::string& folder = options.texts.at("save");
  const Limits limits{numbers.at("keep"), numbers.at("chunk"), numbers.at("produce"), !folder.empty()};
  std::unique_ptr<PagePool> pool;
  if (mode == "paged") {
    const int64_t page = numbers.at("page");
    int64_t pages = 0;
    for (const auto& prompt : prompts)
      pages += (static_cast<int64_t>(prompt.size()) + limits.produce + page - 1) / page;
    pool = std::make_unique<PagePool>(model.config, pages, page);
  }
  std::vector<std::unique_ptr<Request>> requests;
  int64_t prompt_tokens = 0;
  for (const auto& prompt : prompts) {
    requests.push_back(
        std::make_unique<Request>(model, limits, prompt, pool.get(), static_cast<int>(numbers.at("threads"))));
    prompt_tokens += requests.back()->prompt_length();
  }
  const double prefill = for_all(requests, [](Request& request) { request.prefill(); });
  const double generate = for_all(requests, [](Request& request) { request.generate(); });

  size_t bytes = 0;
  for (size_t i = 0; i < requests.size(); ++i) {
    bytes += requests[i]->cache_bytes();
    if (!folder.empty()) save(*requests[i], folder + "/" + mode + "-" + std::to_string(i));
  }
  const double steps = static_cast<double>(requests.size()) * static_cast<double>(limits.produce - 1);
  std::printf("%-8s %zu requests  prefill %.0f tokens/s  generate %.0f tokens/s  cache %.2f MiB\n", mode.c_str(),
              requests.size(), static_cast<double>(prompt_tokens) / prefill, steps / generate,
              static_cast<double>(bytes) / (1 << 20));
}

}  // namespace

int main(int count, char** arguments) {
  try {
    const Options options = parse(count, arguments);
    if (fdma_device_supported(engine::device()) != FDMA_SUCCESS) throw std::runtime_error(fdma_last_error_message());
    Queue queue(0);
    const Model model = make_model(queue, options);
    const auto prompts = make_prompts(options, model.config.vocab);
    std::printf("%s\n", fdma_build_info());
    const std::string& mode = options.texts.at("mode");
    for (const char* one : {"bounded", "paged"}) {
      if (mode == one || mode == "both") serve(model, prompts, options, one);
    }
    return 0;
  } catch (const std::exception& error) {
    std::cerr << "engine: " << error.what() << "\n";
    return 1;
  }
}
