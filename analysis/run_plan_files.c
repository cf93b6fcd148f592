/* The files that a step of a plan will write, by its kind. */
#include "../engine/text.h"
#include "conditions.h"
#include "run_plan_parts.h"
#include <string.h>

void plan_print_files(const Planner *p) {
    fputs("  files: ", p->to);
    plan_print_text(p->to, p->out, strlen(p->out));
    if (p->step->kind == STEP_INTERVENTION) {
        fprintf(p->to,
                "/%s/{step.json,conditions.csv,cells.csv,excluded.csv,prompts.csv,responses/CONDITION.jsonl,"
                "side_effects.csv,labels.csv,outcomes.csv,judge.json}, at most %lld conditions\n",
                p->step->name, (long long)conditions_count(p->step));
        return;
    }
    if (p->step->kind == STEP_UTILITY) {
        fprintf(p->to, "/%s/{step.json,utility.csv,%s}, %lld conditions\n", p->step->name,
                p->step->measure == MEASURE_CHOICES ? "questions.csv,choices.csv" : "texts.csv",
                (long long)(1 + p->step->adapters.n));
        return;
    }
    if (p->step->kind == STEP_CONTRAST) {
        fprintf(p->to,
                "/%s/{step.json,contrast.json,overall.csv,layers.csv,pairs.csv,controls.csv,ranking.csv,"
                "selection_RANKING.csv}\n",
                p->step->name);
        return;
    }
    fprintf(p->to,
            "/%s/"
            "{step.json,scores.csv,curve.csv,coverage.csv,layers.csv,prompts.csv,statistics.json,per_prompt."
            "safetensors}\n",
            p->step->name);
}
