/* The page's only script: a click on a column's head sorts its table, numbers as numbers, what is not
 * defined last. It reads and moves rows, and makes no markup. */
#include "report_parts.h"

const char *const report_script[] = {
    "(function(){'use strict';\n"
    "function key(row,i){var c=row.cells[i];return c?c.textContent.trim():''}\n"
    "function sort(table,head,i){\n"
    "var body=table.tBodies[0],rows=Array.prototype.slice.call(body.rows);\n"
    "var up=head.getAttribute('aria-sort')!=='ascending';\n"
    "var numeric=rows.every(function(r){return /^([-+]?[0-9]|not defined|$)/.test(key(r,i))});\n"
    "rows.map(function(r,n){var k=key(r,i);return{r:r,n:n,k:numeric?parseFloat(k):k}})\n"
    ".sort(function(a,b){\n"
    "if(numeric&&(isNaN(a.k)||isNaN(b.k)))return isNaN(a.k)-isNaN(b.k)||a.n-b.n;\n"
    "var d=a.k<b.k?-1:a.k>b.k?1:0;return(up?d:-d)||a.n-b.n})\n"
    ".forEach(function(e){body.appendChild(e.r)});\n"
    "Array.prototype.forEach.call(head.parentNode.cells,function(h){h.removeAttribute('aria-sort')});\n"
    "head.setAttribute('aria-sort',up?'ascending':'descending')}\n"
    "Array.prototype.forEach.call(document.querySelectorAll('table.s'),function(table){\n"
    "if(!table.tHead||!table.tBodies.length||table.tBodies[0].rows.length<2)return;\n"
    "Array.prototype.forEach.call(table.tHead.rows[0].cells,function(head,i){\n"
    "head.tabIndex=0;head.classList.add('k');\n"
    "head.addEventListener('click',function(){sort(table,head,i)});\n"
    "head.addEventListener('keydown',function(e){if(e.key==='Enter'||e.key===' '){e.preventDefault();"
    "sort(table,head,i)}})})})})();\n",
    NULL};
