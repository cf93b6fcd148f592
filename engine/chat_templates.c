/* What the published templates render, one entry each, without their branches for tools. Sources:
 * chat_template of the families' tokenizer_config.json; harmony for gpt_oss. */
#include "chat_templates.h"
#include "chat.h"
#include <stddef.h>

#define CHATML_SYSTEM "<|im_start|>system\n{c}<|im_end|>\n"
#define CHATML_USER "<|im_start|>user\n{c}<|im_end|>\n"
#define CHATML_ASSISTANT "<|im_start|>assistant\n{c}<|im_end|>\n"
#define CHATML_GENERATION "<|im_start|>assistant\n"
#define CHATML                                                                                               \
    .system = CHATML_SYSTEM, .user = CHATML_USER, .assistant = CHATML_ASSISTANT,                             \
    .generation = CHATML_GENERATION, .reply = "{c}<|im_end|>"

#define DEEPSEEK_BOS "<\uff5cbegin\u2581of\u2581sentence\uff5c>"
#define DEEPSEEK_EOS "<\uff5cend\u2581of\u2581sentence\uff5c>"

#define GRANITE(role) "<|start_of_role|>" role "<|end_of_role|>"

const ChatTemplate chat_templates[] = {
    {.name = "mixtral",
     .bos = "<s>",
     .eos = "</s>",
     .opening = "{bos}",
     .system = "",
     .user = " [INST] {s}{c} [/INST]",
     .assistant = " {c}{eos}",
     .generation = "",
     .reply = "{c}{eos}",
     .system_only_first = true,
     .alternates = true},
    {.name = "mixtral_2023",
     .bos = "<s>",
     .eos = "</s>",
     .opening = "{bos}",
     .user = "[INST] {c} [/INST]",
     .assistant = "{c}{eos}",
     .generation = "",
     .reply = "{c}{eos}",
     .alternates = true},
    {.name = "qwen3", CHATML, .thinks = true},
    {.name = "qwen3_instruct_2507", CHATML},
    {.name = "qwen2", CHATML, .default_system = "You are a helpful assistant."},
    {.name = "qwen2_5",
     CHATML,
     .default_system = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."},
    {.name = "olmoe",
     .bos = "<|endoftext|>",
     .eos = "<|endoftext|>",
     .opening = "{bos}",
     .system = "<|system|>\n{c}\n",
     .user = "<|user|>\n{c}\n",
     .assistant = "<|assistant|>\n{c}{eos}\n",
     .last_assistant = "<|assistant|>\n{c}{eos}",
     .generation = "<|assistant|>\n",
     .reply = "{c}{eos}"},
    {.name = "deepseek2",
     .bos = DEEPSEEK_BOS,
     .eos = DEEPSEEK_EOS,
     .opening = "{bos}",
     .system = "{c}\n\n",
     .user = "User: {c}\n\n",
     .assistant = "Assistant: {c}{eos}",
     .generation = "Assistant:",
     .reply = " {c}{eos}"},
    {.name = "gpt_oss",
     .opening =
         "<|start|>system<|message|>You are ChatGPT, a large language model trained by OpenAI.\n"
         "Knowledge cutoff: 2024-06\nCurrent date: {date}\n\nReasoning: medium\n\n"
         "# Valid channels: analysis, commentary, final. Channel must be included for every message.<|end|>",
     .system = "<|start|>developer<|message|># Instructions\n\n{c}<|end|>",
     .user = "<|start|>user<|message|>{c}<|end|>",
     .assistant = "<|start|>assistant<|channel|>final<|message|>{c}<|end|>",
     .last_assistant = "<|start|>assistant<|channel|>final<|message|>{c}<|return|>",
     .generation = "<|start|>assistant",
     .reply = "<|channel|>final<|message|>{c}<|return|>",
     .system_only_first = true},
    {.name = "phi35moe",
     .system = "<|system|>\n{c}<|end|>\n",
     .user = "<|user|>\n{c}<|end|>\n",
     .assistant = "<|assistant|>\n{c}<|end|>\n",
     .generation = "<|assistant|>\n",
     .reply = "{c}<|end|>"},
    {.name = "granite3",
     .system = GRANITE("system") "{c}<|end_of_text|>\n",
     .user = GRANITE("user") "{c}<|end_of_text|>\n",
     .assistant = GRANITE("assistant") "{c}<|end_of_text|>\n",
     .generation = GRANITE("assistant"),
     .reply = "{c}<|end_of_text|>"},
    {.name = "chatml", CHATML},
    {.name = "raw",
     .system = "{c}",
     .user = "{c}",
     .assistant = "{c}",
     .generation = "",
     .reply = "{c}{eos}"},
};
const int n_chat_templates = sizeof chat_templates / sizeof *chat_templates;

const char *const chat_template_names[] = {"mixtral",  "mixtral_2023",
                                           "qwen3",    "qwen3_instruct_2507",
                                           "qwen2",    "qwen2_5",
                                           "olmoe",    "deepseek2",
                                           "gpt_oss",  "phi35moe",
                                           "granite3", "chatml",
                                           "raw",      NULL};
