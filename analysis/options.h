/* options: every setting of a job, once.
 *
 * One table drives reading job files, --set, the resolved copy in the run folder, the help of `gatetape
 * options` and what a step prints about itself. A new setting is a field here and a row in option_table.c. */
#ifndef GATETAPE_OPTIONS_H
#define GATETAPE_OPTIONS_H
#include "../engine/json.h"
#include "../engine/text.h"

typedef enum { SCOPE_JOB, SCOPE_MODEL, SCOPE_PROMPTS, SCOPE_STEP, N_SCOPES } OptionScope;
typedef enum {
    STEP_ACTIVATION,
    STEP_GRADIENT,
    STEP_CONTRAST,
    STEP_INTERVENTION,
    STEP_TUNE,
    STEP_UTILITY,
    STEP_JUDGE,
    STEP_REPORT,
    N_STEP_KINDS
} StepKind;

typedef struct {
    const char **names; /* array owned, the texts by the job */
    int64_t n;
} NameList;

enum { MOST_NUMBERS = 16 };
typedef struct {
    double values[MOST_NUMBERS];
    int64_t n;
} NumberList;

/* ---- choices: the order is that of the names in option_table.c ---- */
typedef enum { DEVICE_AUTO, DEVICE_CPU, DEVICE_CUDA } DeviceChoice;
typedef enum { DENSE_OWN, DENSE_CUBLAS } DenseChoice;
typedef enum { COMPUTE_AUTO, COMPUTE_F32, COMPUTE_BF16 } ComputeChoice;
typedef enum { FORMAT_AUTO, FORMAT_JSONL, FORMAT_CSV } PromptFormat;
typedef enum { OVER_LONG_REFUSE, OVER_LONG_TRUNCATE_LEFT, OVER_LONG_TRUNCATE_RIGHT, OVER_LONG_SKIP } OverLong;
typedef enum { EMPTY_REFUSE, EMPTY_SKIP } EmptyPrompt;
typedef enum { USE_ANY, USE_RANKING, USE_TUNING, USE_TESTING } PromptUse;
typedef enum {
    COUNT_PROMPT,
    COUNT_LAST,
    COUNT_TARGET,
    COUNT_GENERATED,
    COUNT_PROMPT_TARGET,
    COUNT_PROMPT_GENERATED
} CountedTokens;
typedef enum { LOSS_PROMPT, LOSS_TARGET, LOSS_GENERATED } LossTokens;
typedef enum { AVERAGE_PROMPTS, AVERAGE_TOKENS } Average;
typedef enum { TRACE_NONE, TRACE_CHOICES, TRACE_FULL } TraceChoice;
typedef enum {
    SCORE_RATE,
    SCORE_LAYER_SHARE,
    SCORE_TOTAL_SHARE,
    SCORE_PROBABILITY,
    SCORE_COMBINE_WEIGHT
} ActivationScore;
typedef enum { SCORE_L2, SCORE_L1, SCORE_MEAN_ABS, SCORE_LOGIT_ABS } GradientScore;
typedef enum { DOMINANT_SHARE, DOMINANT_RAW } DominantScore;
typedef enum { LAYERS_OF_SCORES, LAYERS_OF_PROMPTS } LayerStatistics;
typedef enum { CLASS_RATIO, CLASS_DIFFERENCE, CLASS_Z } ClassRule;
typedef enum { PERMUTE_T, PERMUTE_DIFFERENCE } TestStatistic;

typedef enum { CONTRAST_CONTINUATIONS, CONTRAST_PREFIX, CONTRAST_MATCHED, CONTRAST_ADAPTER } ContrastKind;
typedef enum { CONTRAST_ALL, CONTRAST_CONTENT, CONTRAST_LAST, CONTRAST_SHARED } ContrastTokens;
typedef enum { PAIR_AUTO, PAIR_ID, PAIR_NAME, PAIR_TOPIC } PairBy;
typedef enum { LOG_NATURAL, LOG_BASE_2 } LogBase;
typedef enum { RATE_BOTH, RATE_FIRST, RATE_SECOND } RateSide;

typedef enum { RANK_DIFFERENCE, RANK_RATIO, RANK_SCORE } RankBy;
typedef enum { EFFECTS_NONE, EFFECTS_PROMPT, EFFECTS_PROMPT_TARGET } SideEffects;
typedef enum { OBJECTIVE_NLL, OBJECTIVE_PREFERENCE } TuneObjective;
typedef enum { ROUTER_TOKENS_LAST, ROUTER_TOKENS_ALL } RouterTokens;
typedef enum {
    CONTROL_NONE,
    CONTROL_RANDOM,
    CONTROL_LAYER_MATCHED,
    CONTROL_RANDOM_ANY,
    CONTROL_ALL
} TuneControl;
typedef enum { MEASURE_CHOICES, MEASURE_PERPLEXITY } UtilityMeasure;
typedef enum { NORMALIZE_NONE, NORMALIZE_TOKENS, NORMALIZE_BYTES } ChoiceNormalize;
typedef enum { CHOICES_AS_TEXT, CHOICES_AS_LETTERS } ChoiceForm;
typedef enum { TEXT_PROMPT, TEXT_TARGET } MeasuredText;
typedef enum { APPLIES_TO_BOTH, APPLIES_TO_PROMPT, APPLIES_TO_GENERATED } AppliesTo;

/* ---- records: texts are owned by the job ---- */
typedef struct {
    int64_t schema_version, seed;
    int device, compute, dense;
    int64_t batch_tokens, batch_prompts, memory_limit_mib, ranks;
    int residency; /* Residency */
    const char *device_file;
} JobOptions;

typedef struct {
    const char *name; /* its key in the job */
    const char *path, *chat_template, *date;
    bool parse_special_in_content, add_special, generation_prompt, thinking;
} ModelOptions;

typedef struct {
    const char *name;
    const char *path, *system;
    int format, over_long, empty, use;
    int64_t first, limit, max_tokens;
    bool target_end;
} PromptOptions;

typedef struct {
    const char *name, *model;
    int kind; /* StepKind */
    NameList groups, from;
    int activation_score, gradient_score, tokens, loss, average, dominant, layer_statistics, trace, recompute;
    int64_t last_tokens, max_new_tokens, top_k;
    double temperature, top_p;
    bool gate_rows;
    /* statistics.json */
    NumberList thresholds, top_sets;
    int64_t bootstraps, permutations, splits;
    double confidence, stable_share, near_tie;
    int test_statistic, class_rule;
    /* intervention */
    NameList rank_groups, cells;
    NumberList top, traffic;
    const char *counts, *traffic_group, *selection;
    int rank_by, mode, applies_to, side_effects; /* mode: EditMode less EDIT_MASK */
    double value, class_ratio;
    int64_t random_sets, layer_matched_sets, traffic_matched_sets;
    bool exclude_super, reply_perplexity;
    /* judge */
    const char *rules, *labels, *guard;
    NameList decides;
    double perplexity_limit;
    int perplexity_reference;
    int64_t resamples;
    /* contrast */
    int contrast, contrast_tokens, pair_by, js_log, rate_side;
    const char *prefix;
    int64_t overlap_k, controls, select;
    double select_share, select_least;
    bool contrast_gradient;
    /* tune; the adapter of other steps */
    const char *adapter, *adapter_path;
    NameList adapters; /* intervention, utility: a condition each */
    NameList projections, evaluate;
    int64_t rank, steps, epochs, examples, warmup, seed, checkpoint_every, evaluate_every, patience, draw;
    double alpha, learning_rate, weight_decay, clip_norm;
    int schedule, form, ranking, control; /* ScheduleKind, AdapterForm, ContrastRankingKind, TuneControl */
    int objective, router_tokens;         /* TuneObjective, RouterTokens */
    double beta, router_kl, router_temperature, router_anchor, gate_rate, dropout;
    /* utility */
    int measure, normalize, choice_form, measured_text;
} StepOptions;

/* ---- the table ---- */
typedef enum {
    OPTION_BOOL,    /* bool */
    OPTION_INTEGER, /* int64_t */
    OPTION_NUMBER,  /* double */
    OPTION_CHOICE,  /* int */
    OPTION_STRING,  /* const char * */
    OPTION_PATH,    /* const char *, made absolute; "" where the preset is */
    OPTION_NAMES,   /* NameList */
    OPTION_NUMBERS, /* NumberList, ascending */
    OPTION_INTEGERS /* NumberList of integers, ascending */
} OptionType;

typedef struct {
    OptionScope scope;
    unsigned kinds; /* steps: bit 1 << StepKind for each kind that has it; else 0 */
    const char *name;
    OptionType type;
    size_t offset;              /* of its field in the scope's record */
    const char *preset;         /* the default as JSON; NULL: must be given */
    double least, most;         /* of an OPTION_INTEGER or OPTION_NUMBER, or of each in a list */
    const char *const *choices; /* of an OPTION_CHOICE, NULL-terminated */
    bool statistics;            /* says how statistics.json is made of a step's results, or of a table's */
    bool same_results;          /* cannot change a number: a job stays the same job when it changes */
    const char *help;
} Option;

extern const Option option_table[];
extern const int64_t n_options;
extern const char *const step_kind_names[N_STEP_KINDS + 1];

/* Texts that live as long as the job: strings of options, absolute paths. */
typedef struct {
    char **texts;
    int64_t n, capacity;
} TextPool;

const char *pool_put(TextPool *pool, const char *text, size_t length, Error *error); /* NULL: out of memory */
void pool_free(TextPool *pool);

/* Fills a record with the presets; options without one stay zero. */
bool options_preset(OptionScope scope, void *record, TextPool *pool, Error *error);
/* Frees the lists of a record. */
void options_free(OptionScope scope, void *record);
/* One value into its field. `folder` is what a relative path counts from. */
bool option_read(const Option *option, Json value, void *record, const char *folder, TextPool *pool,
                 Error *error);
/* The same from a text as the command line has it: texts need no quotes, lists are a,b,c. `place` stands
 * before messages. */
bool option_read_text(const Option *option, const char *value, const char *place, void *record,
                      TextPool *pool, Error *error);
/* By name; NULL and an Error at `at` that names the nearest one when there is none, or when it belongs to
 * other kinds of steps. `kind` < 0: not a step. */
const Option *option_find(OptionScope scope, int kind, const char *name, Json at, Error *error);
/* False when an option without a preset was not given. */
bool options_complete(OptionScope scope, int kind, const void *record, Json at, Error *error);

/* `"name": value` of an option, as JSON. */
void option_write(const Option *option, const void *record, Text *to);
/* All options of a scope as the members of an object, one a line, indented; `identity` leaves out the paths
 * and what cannot change a number. */
void options_write(OptionScope scope, int kind, const void *record, int indent, bool identity, Text *to);
/* The same of those that say how statistics are made, on one line. */
void options_write_statistics(int kind, const void *record, Text *to);
/* The choice's name, as in the job. */
const char *option_choice(const char *name, OptionScope scope, int value);
/* What `gatetape options` prints: every option, its values, default and meaning. */
void options_document(Text *to);

#endif
